"""SimCLR with ResNet-18 on CIFAR-10, batch 256, end to end: Selfsight against lightly's own recipe.

lightly: its transform, backbone, head and loss in a plain loop, PyTorch's DataLoader with two
workers, FP32, as its CIFAR-10 benchmark ships. Selfsight: `fit` itself, with loader, log and probe.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import arguments, machine, pictures, report, start
from selfsight.data.images import Images
from selfsight.data.source import Subset
from selfsight.data.sources.open import open_source
from selfsight.logging.log import read_metrics
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import compose
from selfsight.train.engine import fit
from selfsight.train.loader import make_loader
from selfsight.train.precision import pick_precision
from selfsight.train.probe import OnlineProbe

BATCH = 256
CPU = torch.device("cpu")


class Pictures(Dataset):
    def __init__(self, decoded: list) -> None:
        self.decoded = decoded
        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(self.decoded[i])


def lightlys(decoded: list, steps: int) -> Iterator[float]:
    """Images/s of each round of so many steps; network and workers live on between rounds."""
    generator = ResNetGenerator("resnet-18")
    backbone = nn.Sequential(*list(generator.children())[:-1], nn.AdaptiveAvgPool2d(1))
    head, loss = SimCLRProjectionHead(512, 512, 128), NTXentLoss(temperature=0.5)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.06 * BATCH / 128, momentum=0.9, weight_decay=5e-4)
    data = DataLoader(
        Pictures(decoded),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )

    def batches() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from data

    feed = batches()

    def step() -> None:
        x1, x2 = next(feed)
        z1, z2 = head(backbone(x1).flatten(1)), head(backbone(x2).flatten(1))
        value = loss(z1, z2)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        value.item()

    step()
    while True:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        yield steps * BATCH / (time.perf_counter() - began)


def selfsights(data: str, images: int, steps: int) -> Iterator[float]:
    """The same of Selfsight, from the log of real runs."""
    overrides = [f"data.path={data}", f"batch_size={BATCH}", "log_every=1", "device=cpu"]
    overrides += [f"max_steps={steps + 1}", "evaluate.every_epochs=0", "checkpoint.every_epochs=0"]
    config = compose("cifar10/simclr", overrides).config
    source = Subset(open_source(config.data, "train"), torch.arange(images).numpy())
    loader = make_loader(config, Images(source, config.data, CPU))
    method = build_method(config)
    while True:
        probe = OnlineProbe(method.backbone.num_features, 10)
        with tempfile.TemporaryDirectory() as folder:
            fit(method, loader, config, Path(folder), CPU, probe=probe, quiet=True)
            records = read_metrics(Path(folder) / "metrics.jsonl")
        yield steps * BATCH / (records[-1]["seconds"] - records[0]["seconds"])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=2, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(machine(), "selfsight's precision:", pick_precision("auto", CPU))
    count = BATCH * 8
    theirs = lightlys(pictures(options.data, count), options.steps)
    ours = selfsights(options.data, count, options.steps)
    pairs = [(next(ours), next(theirs)) for _ in range(options.rounds)]
    report("training", [a for a, _ in pairs], [b for _, b in pairs], "images/s")


if __name__ == "__main__":
    start(main)
