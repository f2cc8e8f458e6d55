"""What an encoder in parts costs: `python -m benchmarks.encoder_parts`. Prints two tables.

Time      A step of SimCLR with a ViT-Ti/16 of images of 96 px, whole and in parts, in turns.
Memory    Peak resident memory of one step of SimCLR with a ViT-S/16 beyond that before it, in a
          process of its own for each number of parts; --images 2048 --size 224 --parts 128 is a
          step of 2,048 images, which takes half an hour on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import timm
import torch

from benchmarks.common import machine
from selfsight.methods import SimCLR
from selfsight.recompute import compute_in_parts


def method_of(name: str, size: int, parts: int) -> SimCLR:
    torch.manual_seed(0)
    method = SimCLR(timm.create_model(name, num_classes=0, img_size=size))
    compute_in_parts(method, method.backbone, parts)
    return method


def step(method: SimCLR, x1: torch.Tensor, x2: torch.Tensor) -> float:
    began = time.perf_counter()
    method(x1, x2).loss.backward()
    method.zero_grad()
    return time.perf_counter() - began


def times(rounds: int, images: int = 256, size: int = 96) -> None:
    """The ratio of each pair of steps."""
    views = torch.rand(2, images, 3, size, size)
    methods = {parts: method_of("vit_tiny_patch16_224", size, parts) for parts in (1, 2, 4, 8)}
    taken = {parts: [] for parts in methods}
    for number in range(rounds + 1):
        for parts, method in methods.items():
            seconds = step(method, *views)
            if number:  # the first warms up
                taken[parts].append(seconds)
    print("| parts | seconds a step | of the whole batch |\n|---|---|---|")
    for parts, seconds in taken.items():
        ratios = sorted(a / b for a, b in zip(seconds, taken[1], strict=True))
        shown = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n={rounds})"
        print(f"| {parts} | {median(seconds):.2f} | {shown} |")


def memory(images: int, size: int, parts: int) -> dict[str, float]:
    """MiB of the views, and of a step with them at most, beyond weights and gradients (Linux)."""

    def mib(line: str) -> float:
        text = Path("/proc/self/status").read_text()
        return int(text.partition(f"{line}:")[2].split()[0]) / 2**10

    method = method_of("vit_small_patch16_224", size, parts)
    for weight in method.parameters():
        weight.grad = torch.zeros_like(weight)
    before = mib("VmRSS")
    views = torch.rand(2, images, 3, size, size)
    with_views = mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    method(*views).loss.backward()
    return {"views": with_views - before, "step": mib("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--no-times", action="store_true", help="memory alone")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(memory(options.images, options.size, options.one)))
        return
    print(machine())
    if not options.no_times:
        times(options.rounds)
    print("\n| parts | MiB of the views | MiB of a step, with views |\n|---|---|---|")
    for parts in options.parts:
        command = [sys.executable, "-m", "benchmarks.encoder_parts", "--one", str(parts)]
        command += ["--images", str(options.images), "--size", str(options.size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {parts} | {found['views']:,.0f} | {found['step']:,.0f} |")


if __name__ == "__main__":
    main()
