"""What the benchmarks share: real images, machine, medians."""

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    default = Path(__file__).parent.parent.parent / "shared" / "data" / "cifar10"
    parser.add_argument(
        "--data", default=str(default), help="CIFAR-10, in any form Selfsight reads"
    )
    return parser


def start(main: Callable[[], None]) -> None:
    """Run a benchmark; missing data is one line."""
    try:
        main()
    except UserError as error:
        sys.exit(f"{error}. Name CIFAR-10 with --data PATH")


def pictures(path: str, count: int) -> list[Image.Image]:
    """The first training images, decoded, as the peers take them."""
    source = open_source(DataConfig(path=path), "train")
    return [Image.fromarray(decode(source, i)) for i in range(count)]


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def report(
    title: str, ours: list[float], theirs: list[float], unit: str, peer: str = "lightly"
) -> None:
    """Medians of interleaved runs, and the median, least and greatest of their paired ratios."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{title}: selfsight {median(ours):.1f} {unit}, {peer} {median(theirs):.1f} {unit}, "
        f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n={len(ratios)})"
    )
