"""The training step of six methods, ResNet-18 on CIFAR-10 at 32 px, against lightly's parts.

Both take the same two fixed views of the same real images, made once: no loading, no augmentation,
no log. Heads have the same widths (those of lightly's CIFAR-10 benchmark), queues the same length,
SGD the same settings; the script stops unless all trainable weights but biases and gains have the
same shapes. Selfsight: its method through the engine's own `place` and `_forward_backward`, its
optimizer and both hooks, precision `auto`. lightly: its backbone, heads, losses and
`update_momentum` in a plain FP32 loop, as its examples for each method. The backbone is cut from
ResNetGenerator as lightly does it, which loses the ReLU after the stem; that saves it a little.

On a GPU `auto` means bf16 and torch.compile for Selfsight; --alike turns both off. The switches
that Selfsight sets there (TF32 products, cudnn.benchmark) hold for both.
"""

import copy
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    VICRegLoss,
)
from lightly.models import ResNetGenerator
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    VICRegProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from benchmarks.common import MEAN, STD, arguments, machine, pictures, report, start
from selfsight.batch import Batch, Normalization, SampleKey
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.train.engine import _forward_backward, place
from selfsight.train.optim import OptimizerConfig, build_optimizer
from selfsight.train.precision import pick_device, pick_precision
from selfsight.views.make import make_views
from selfsight.views.recipe import ViewGroup, preset

Step = Callable[[], Tensor]  # trains once and returns the loss

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}  # low: all methods stay finite with it
PROGRESS = 0.5  # of training: nothing is frozen or warming up

# Of Selfsight's methods; the peers below repeat the numbers.
SIZES: dict[str, dict] = {
    "simclr": {"hidden_dim": 512, "output_dim": 128, "temperature": 0.5},
    "moco_v2": {
        "hidden_dim": 512,
        "output_dim": 128,
        "queue_size": 4096,
        "temperature": 0.1,
        "momentum": 0.99,
    },
    "byol": {"hidden_dim": 1024, "output_dim": 256, "momentum": 0.99},
    "barlow_twins": {"hidden_dim": 2048, "output_dim": 2048},
    "vicreg": {"hidden_dim": 2048, "output_dim": 2048},
    "dino": {
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "output_dim": 2048,
        "head_norm": True,
        "momentum": 0.99,
    },
}


class Pair(nn.Module):
    """lightly's backbone and head, one loss of the two views' embeddings."""

    def __init__(self, head: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        layers = list(ResNetGenerator("resnet-18").children())[:-1]
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head, self.criterion = head, criterion

    def embed(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.criterion(self.embed(x1), self.embed(x2))

    def follow(self) -> None:
        """Before each step."""


class Taught(Pair):
    """With a slow copy of backbone and head; by itself it is MoCo."""

    def __init__(self, head: Callable[[], nn.Module], criterion: nn.Module) -> None:
        super().__init__(head(), criterion)
        self.slow_backbone = copy.deepcopy(self.backbone)
        self.slow_head = head()  # DINO's cannot be copied: its weights are computed from others
        deactivate_requires_grad(self.slow_backbone)
        deactivate_requires_grad(self.slow_head)

    def teach(self, x: Tensor) -> Tensor:
        return self.slow_head(self.slow_backbone(x)).detach()

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.criterion(self.embed(x1), self.teach(x2))

    def follow(self) -> None:
        update_momentum(self.backbone, self.slow_backbone, m=0.99)
        update_momentum(self.head, self.slow_head, m=0.99)


class Predicting(Taught):
    """BYOL."""

    def __init__(self) -> None:
        super().__init__(partial(BYOLProjectionHead, 512, 1024, 256), NegativeCosineSimilarity())
        self.predictor = BYOLPredictionHead(256, 1024, 256)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        p1, p2 = self.predictor(self.embed(x1)), self.predictor(self.embed(x2))
        z1, z2 = self.teach(x1), self.teach(x2)
        return 0.5 * (self.criterion(p1, z2) + self.criterion(p2, z1))


class Crops(Taught):
    """DINO."""

    def __init__(self) -> None:
        head = partial(DINOProjectionHead, 512, 2048, 256, 2048, batch_norm=True)
        super().__init__(head, DINOLoss(output_dim=2048))

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        targets = [self.teach(x1), self.teach(x2)]
        return self.criterion(targets, [self.embed(x1), self.embed(x2)])


PEERS: dict[str, Callable[[], Pair]] = {
    "simclr": lambda: Pair(SimCLRProjectionHead(512, 512, 128), NTXentLoss(temperature=0.5)),
    "moco_v2": lambda: Taught(
        partial(MoCoProjectionHead, 512, 512, 128),
        NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128)),
    ),
    "byol": Predicting,
    "barlow_twins": lambda: Pair(BarlowTwinsProjectionHead(512, 2048, 2048), BarlowTwinsLoss()),
    "vicreg": lambda: Pair(VICRegProjectionHead(512, 2048, 2048), VICRegLoss()),
    "dino": Crops,
}


def selfsights(name: str, views: list[Tensor], alike: bool, device: torch.device) -> tuple:
    """(the method, its step)."""
    backbone = build_backbone(BackboneConfig(name="resnet18", small_images=True), 32, seed=0)
    method = METHODS[name](backbone, METHODS[name].Config(**SIZES[name]))
    precision, compiled = ("fp32", False) if alike else ("auto", "auto")
    module = place(method, device, compiled)
    config = OptimizerConfig(name="sgd", **SGD)
    optimizer = build_optimizer(method, config, SGD["lr"], method.constant_lr)
    amp = pick_precision(precision, device) == "bf16"
    batch = Batch(views, None, SampleKey(0, 0, torch.arange(len(views[0]), device=device)))
    method.train()

    def step() -> Tensor:
        output = _forward_backward(module, [batch], amp)
        method.after_backward(PROGRESS)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(PROGRESS)
        return output.loss

    return method, step


def lightlys(name: str, views: list[Tensor], device: torch.device) -> tuple[nn.Module, Step]:
    """The same of lightly."""
    model = PEERS[name]().to(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    x1, x2 = (view.contiguous() for view in views)  # the layout that its loader gives
    model.train()

    def step() -> Tensor:
        model.follow()
        loss = model(x1, x2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return model, step


def rate(step: Step, steps: int, images: int) -> float:
    """Images/s of so many steps; reading the last loss waits for the device."""
    began = time.perf_counter()
    for _ in range(steps):
        loss = step()
    value = loss.item()
    elapsed = time.perf_counter() - began
    if not np.isfinite(value):
        sys.exit(f"the loss is {value}: no step to be timed")
    return steps * images / elapsed


def trained(module: nn.Module) -> tuple[Counter, int]:
    """How many weights of each shape are trained, and the number of all trained parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    shapes = Counter(tuple(p.shape) for p in parameters if p.ndim > 1)
    return shapes, sum(p.numel() for p in parameters)


def compare(name: str, views: list[Tensor], options, device: torch.device) -> None:
    """Time both in turns and print a row."""
    torch.manual_seed(0)
    method, ours = selfsights(name, views, options.alike, device)
    model, theirs = lightlys(name, views, device)
    (our_shapes, our_count), (their_shapes, their_count) = trained(method), trained(model)
    if our_shapes != their_shapes:
        differences = our_shapes - their_shapes, their_shapes - our_shapes
        sys.exit(f"{name}: the weights differ: {differences}")
    for step in (ours, theirs):
        rate(step, 1 if device.type == "cpu" else 10, options.batch)
    pairs = [
        [rate(step, options.steps, options.batch) for step in (ours, theirs)]
        for _ in range(options.rounds)
    ]
    title = f"{name} ({our_count:,} against {their_count:,} parameters)"
    report(title, [a for a, _ in pairs], [b for _, b in pairs], "images/s")


def two_views(path: str, count: int, device: torch.device) -> list[Tensor]:
    pixels = torch.from_numpy(np.stack([np.array(p) for p in pictures(path, count)]))
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    groups = [ViewGroup(**group) for group in preset("simclr-small")]
    views = make_views(
        pixels, groups, SampleKey(0, 0, torch.arange(count)), Normalization(MEAN, STD)
    )
    return [view.to(device) for view in views]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="of one turn")
    parser.add_argument("--methods", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--alike", action="store_true", help="Selfsight in FP32, uncompiled, too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)  # lightly's DINO head
    try:
        device = pick_device(options.device)
    except UserError as error:
        sys.exit(str(error))
    precision = "fp32" if options.alike else pick_precision("auto", device)
    gpu = f", {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    print(f"{machine()}{gpu}, batch {options.batch}, selfsight's precision: {precision}")
    views = two_views(options.data, options.batch, device)
    for name in options.methods:
        compare(name, views, options, device)


if __name__ == "__main__":
    start(main)
