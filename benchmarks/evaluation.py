"""Evaluation on cached features: reading them, the linear probe, kNN. Prints one table.

Features   images/s of ResNet-18 (CIFAR stem) on CIFAR-10, float32: `extract` against the loop of
           lightly's kNN benchmark: DataLoader with two workers, ToTensor and Normalize of PIL
           images, the same network in eval mode, normalised features. In turns; what is compared is
           the ratio of each pair. The images' decoding is left out on both sides.
Linear     50,000 x 512 structured random features, 10 classes: ReLU of correlated noise (a power
           law of variances) around class means. Seconds of `linear_probe` (strength chosen, 1 and 5
           labels), and its top-1 beside that of scikit-learn's LogisticRegression, converged
           (tol 1e-6), at the strength that is best on the same validation part.
kNN        `neighbours`, k = 200, on random float16 features in a mapped file of a tenth of
           ImageNet's size, in a fresh process. Time grows as images x queries: what the whole would
           take is that law, not a measurement. Memory is the rise of RssAnon of /proc/self/status,
           read every 10 ms: pages of the mapped file are not in it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.common import MEAN, STD, arguments, machine, pictures, start
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.labels import hold_out
from selfsight.data.source import Subset
from selfsight.data.sources.open import open_source
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.evaluate import linear
from selfsight.evaluate.features import extract, read_features
from selfsight.evaluate.knn import neighbours

CPU = torch.device("cpu")
IMAGENET = 1_281_167, 50_000  # training and validation images
K = 200


class Pictures(Dataset):
    """As lightly's benchmark reads its test images."""

    def __init__(self, decoded: list) -> None:
        self.decoded = decoded
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.decoded[i])


@torch.no_grad()
def lightlys(network: nn.Module, data: DataLoader) -> Tensor:
    """The loop of its KNNClassifier: forward, flatten, normalise, keep on the CPU."""
    network.eval()
    features = [F.normalize(network(x).flatten(start_dim=1), dim=1).cpu() for x in data]
    return torch.cat(features)


def features(options: argparse.Namespace) -> str:
    network = build_backbone(BackboneConfig(name="resnet18", small_images=True), 32, seed=0)
    plain = build_backbone(BackboneConfig(name="resnet18", small_images=True), 32, seed=0)
    network.to(memory_format=torch.channels_last)
    config = DataConfig(path=options.data)
    source = Subset(open_source(config, "train"), np.arange(options.images))
    images = Images(source, config, CPU)
    workers = {"num_workers": 2, "persistent_workers": True}
    data = DataLoader(Pictures(pictures(options.data, options.images)), options.batch, **workers)

    def ours() -> Tensor:
        return F.normalize(extract(network, images, 32, Normalization(MEAN, STD)), dim=1)

    def theirs() -> Tensor:
        return lightlys(plain, data)

    torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-4)  # and starts their workers
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(options.rounds)]
    rates = [[options.images / s for s in side] for side in zip(*pairs, strict=True)]
    ratios = sorted(b / a for a, b in pairs)
    return (
        f"| features, {options.images:,} images | {median(rates[0]):.0f} images/s "
        f"| lightly {median(rates[1]):.0f} images/s "
        f"| ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n={len(ratios)}) |"
    )


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def structured(rows: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features and labels; the classes and the noise's correlations do not depend on the seed."""
    fixed, drawn = (torch.Generator().manual_seed(s) for s in (99, seed))
    means = torch.randn(classes, width, generator=fixed)
    deviation = torch.arange(1, width + 1).float() ** -0.7
    mix = deviation[:, None] * torch.randn(width, width, generator=fixed)
    mix /= mix.norm(dim=0).mean()
    y = torch.randint(0, classes, (rows,), generator=drawn)
    noise = torch.randn(rows, width, generator=drawn)
    return ((0.15 * means[y] + noise) @ mix).relu_(), y


def converged(x: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> tuple[float, float]:
    """(strength, test top-1) of scikit-learn's optimum, chosen on the probe's validation part."""
    mean, std = x.mean(0), x.std(0, correction=0)
    x, test = (((a - mean) / std).double().numpy() for a in (x, test))
    y, truth = y.numpy(), truth.numpy()
    held = hold_out(y, linear.VALIDATION, 0)
    model = LogisticRegression(max_iter=100_000, tol=1e-6, warm_start=True)
    scores = {}
    for c in linear.STRENGTHS:
        model.set_params(C=c).fit(x[~held], y[~held])
        scores[c] = model.score(x[held], y[held])
    best = max(scores, key=scores.__getitem__)
    return best, model.set_params(C=best).fit(x, y).score(test, truth)


def linear_probe(options: argparse.Namespace) -> str:
    x, y = structured(options.probe, 512, 10, seed=0)
    test, truth = structured(10_000, 512, 10, seed=1)
    results, times = [], []

    def probe() -> None:
        results.append(linear.linear_probe(x, y, test, truth, seed=0))

    times = [seconds(probe) for _ in range(options.rounds)]
    began = time.perf_counter()
    strength, top1 = converged(x, y, test, truth)
    theirs, ours = time.perf_counter() - began, results[0]
    return (
        f"| linear probe, {options.probe:,} x 512 | {median(times):.1f} s "
        f"({min(times):.1f} to {max(times):.1f}, n={len(times)}), "
        f"top-1 {100 * ours.top1:.2f} % at C={ours.strength:g} "
        f"| scikit-learn {theirs:.0f} s without few labels (n=1), "
        f"top-1 {100 * top1:.2f} % at C={strength:g} "
        f"| {100 * (ours.top1 - top1):+.2f} points |"
    )


def knn(options: argparse.Namespace) -> str:
    """In a process of its own, whose memory nothing else has raised."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--search"]
    sizes = [options.bank, options.queries, options.width]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, json.dumps([folder, *sizes])], check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout)
    factor = IMAGENET[0] / options.bank * IMAGENET[1] / options.queries
    more = 12 * K * (IMAGENET[1] - options.queries) / 2**20  # of results; all else is the same
    return (
        f"| kNN, {options.bank:,} x {options.width}, {options.queries:,} queries, k={K} "
        f"| {found['seconds']:.1f} s, {found['mib']:.0f} MiB beyond the features | "
        f"| ImageNet's size, extrapolated: {found['seconds'] * factor / 3600:.1f} h, "
        f"{found['mib'] + more:.0f} MiB |"
    )


def search(folder: str, bank: int, queries: int, width: int) -> dict[str, float]:
    generator = np.random.default_rng(0)
    files = []
    for name, rows in (("bank", bank), ("queries", queries)):
        files.append(Path(folder) / f"{name}.npy")
        shape = (rows, width)
        out = np.lib.format.open_memmap(files[-1], "w+", np.float16, shape)
        for first in range(0, rows, 4096):
            part = out[first : first + 4096]
            part[:] = generator.standard_normal(part.shape, np.float32)
        out.flush()
    x, q = (read_features(file) for file in files)
    neighbours(x[:K], q[:10], K)  # loads what the libraries load
    with peak() as memory:
        taken = seconds(lambda: neighbours(x, q, K))
    return {"seconds": taken, "mib": (max(memory) - memory[0]) / 1024}


class peak:
    """KiB of memory that is no file's, sampled in a thread while the block runs."""

    def __enter__(self) -> list[int]:
        self.seen, self.done = [self.now()], threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self.seen

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.done.wait(0.01):
            self.seen.append(self.now())

    @staticmethod
    def now() -> int:
        lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1024, help="whose features are read")
    parser.add_argument("--batch", type=int, default=512, help="lightly's; its benchmark's default")
    parser.add_argument("--probe", type=int, default=50_000, help="rows of the linear probe")
    parser.add_argument("--bank", type=int, default=128_117, help="rows that kNN searches")
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--only", choices=("features", "linear", "knn"), help="one row")
    parser.add_argument("--search", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(json.dumps(search(*json.loads(options.search))))
        return
    print(machine(), flush=True)
    print("\n| what | selfsight | peer | comparison |\n|---|---|---|---|", flush=True)
    rows = {"features": features, "linear": linear_probe, "knn": knn}
    for name, row in rows.items():
        if options.only in (None, name):
            print(row(options), flush=True)


if __name__ == "__main__":
    start(main)
