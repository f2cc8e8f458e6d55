"""Training, checks, evaluations and resumes in one process for a long time: nothing may pile up.

A round is a training that a signal stops, its continuation from the checkpoint, with kNN checks and
an online probe, then a kNN, a linear and a fine-tuned evaluation, and a check of the images. After
each round four numbers are taken: resident memory, open descriptors, threads, and files left in the
folder for temporary files. The first third of the rounds fills caches and is left out. The program
ends with 1 if the trend of the rest (Theil-Sen: the median of all slopes) is above LIMITS.

    python -m benchmarks.soak --minutes 60
    python -m benchmarks.soak --minutes 10 --leak 1        the control: a MiB a round is found
"""

import argparse
import gc
import itertools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import selfsight
from selfsight.data.check import check
from selfsight.data.config import DataConfig
from selfsight.train.hooks import RunState
from selfsight.train.signals import Interrupted

# by how much each number may grow a round
LIMITS = {"memory in MiB": 0.2, "descriptors": 0.02, "threads": 0.02, "temporary files": 0.02}
LEAST = 20  # rounds that count
KEYS = {
    "backbone.name": "resnet18",
    "backbone.small_images": True,
    "backbone.stem_stride": 2,
    "backbone.options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "views": "digits",
    "batch_size": 64,
    "epochs": 4,
    "evaluate.every_epochs": 1,
    "checkpoint": {"every_steps": 3},
    "device": "cpu",
}


def write_images(folder: Path, count: int = 320, classes: int = 4) -> None:
    """A folder of small photographs of noise, which differ by class, in both splits."""
    random = np.random.default_rng(0)
    for n in range(count):
        mean = 50 * (n % classes) + 30
        pixels = np.clip(random.normal(mean, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
        split = "test" if n % 5 == 0 else "train"
        file = folder / split / f"class{n % classes}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def one_round(images: Path, run: Path, in_memory: bool) -> None:
    """Everything that a round is, see the head of this file."""

    def stop(state: RunState) -> None:
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    data = {"path": str(images), "in_memory": in_memory}
    train = {"run": run, "data": data, "quiet": True, **KEYS}
    try:
        selfsight.pretrain("digits/simclr", hooks=[selfsight.every(stop, steps=7)], **train)
        raise AssertionError("the signal did not stop the training")
    except Interrupted:
        pass
    made = selfsight.pretrain("digits/simclr", **train)
    selfsight.knn(made, pixels=False)
    selfsight.linear(made, pixels=False, untrained=False)
    selfsight.finetune(made, ["epochs=1"], quiet=True)
    check(DataConfig(path=str(images)), lambda *_: None)


def numbers() -> dict[str, float]:
    """The four numbers now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory in MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def growth(values: list[float]) -> float:
    """The trend a round, without the first third: the median of the slopes between any two."""
    rest = np.array(values[len(values) // 3 :])
    i, j = np.triu_indices(len(rest), 1)
    return float(np.median((rest[j] - rest[i]) / (j - i)))


def verdict(seen: dict[str, list[float]]) -> list[str]:
    """A line for each number that grows."""
    return [
        f"{name} grow by {growth(values):.3f} a round, and at most {LIMITS[name]} is allowed"
        for name, values in seen.items()
        if growth(values) > LIMITS[name]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--leak", type=float, default=0.0, help="MiB that each round leaves")
    parser.add_argument("--leak-files", type=int, default=0, help="open files that each leaves")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    left: list[object] = []
    seen: dict[str, list[float]] = {name: [] for name in LIMITS}
    with tempfile.TemporaryDirectory() as place:
        images, temporary = Path(place, "images"), Path(place, "tmp")
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        write_images(images)
        end = time.monotonic() + 60 * asked.minutes
        for n in itertools.count():
            began = time.monotonic()
            one_round(images, Path(place, f"run{n}"), in_memory=n % 2 == 0)
            left.append(bytearray(os.urandom(int(asked.leak * 2**20))))
            left += [open(os.devnull) for _ in range(asked.leak_files)]  # noqa: SIM115
            for name, value in numbers().items():
                seen[name].append(value)
            if n % 10 == 0:
                now = ", ".join(f"{name} {values[-1]:.0f}" for name, values in seen.items())
                print(f"round {n} ({time.monotonic() - began:.1f} s): {now}", flush=True)
            if time.monotonic() > end:
                break
        tempfile.tempdir = None
    rounds = len(seen["threads"])
    print(f"{rounds} rounds in {asked.minutes:g} minutes; growth a round without the first third:")
    for name, values in seen.items():
        print(
            f"  {name}: {growth(values):+.4f}, from {values[rounds // 3]:.0f} to {values[-1]:.0f}"
        )
    if rounds * 2 // 3 < LEAST:
        sys.exit(f"{rounds} rounds are too few to see a trend; give more --minutes")
    problems = verdict(seen)
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
