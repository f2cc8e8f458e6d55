"""Does every method learn? Digits, a small encoder, the same few epochs, several seeds.

Trains recipe digits/<method> for so many epochs and compares the kNN accuracy (k = 20, protocol of
`selfsight knn`) of its encoder on the 360 test images with that of the untrained network.
Fails if a method's mean gain over the seeds is below the margin.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

MARGIN = 3.0  # points of kNN accuracy


@dataclass(frozen=True)
class Learned:
    method: str
    encoder: float  # kNN accuracy in %
    untrained: float
    seconds: float  # of training


def learn(method: str, seed: int, epochs: int, extra: list[str]) -> Learned:
    import torch

    from selfsight.evaluate import protocols as measure
    from selfsight.pretraining import job as run
    from selfsight.pretraining.config import compose

    torch.set_num_threads(1)
    keys = [f"seed={seed}", f"epochs={epochs}", "evaluate.every_epochs=0", "device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        config = compose(f"digits/{method}", [*keys, *extra], run=str(Path(folder) / "run")).config
        run.pretrain(config, quiet=True)
        results = {r.evaluated: r for r in measure.knn(config.run)}
    encoder, untrained = results["encoder"], results["untrained"]
    return Learned(
        method,
        100 * encoder.metrics["k20"],
        100 * untrained.metrics["k20"],
        encoder.cost["pretrain_seconds"],
    )


def all_of(methods: list[str], options: argparse.Namespace) -> Iterator[list[Learned]]:
    """For each method the results of all its seeds."""
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {
            method: [
                pool.submit(learn, method, seed, options.epochs, options.keys)
                for seed in range(options.seeds)
            ]
            for method in methods
        }
        for method in methods:
            yield [future.result() for future in futures[method]]


def row(runs: list[Learned]) -> tuple[str, float]:
    """A line of the table, and the mean gain."""

    def spread(values: list[float]) -> str:
        return f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}"

    encoder, untrained = [r.encoder for r in runs], [r.untrained for r in runs]
    gain = mean(encoder) - mean(untrained)
    seconds = mean(r.seconds for r in runs)
    cells = [runs[0].method, spread(encoder), spread(untrained), f"{gain:+.1f}", f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |", gain


def main() -> None:
    from selfsight.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__)
    scratch = [name for name, method in METHODS.items() if method.frozen_teacher == "no"]
    parser.add_argument("--methods", nargs="+", default=scratch)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--keys", nargs="*", default=[], help="further key=value for all")
    options = parser.parse_args()
    began, failed = time.perf_counter(), []
    print("| method | kNN, % | untrained, % | gain | training, s |\n|---|---|---|---|---|")
    for runs in all_of(options.methods, options):
        line, gain = row(runs)
        print(line, flush=True)
        if gain < MARGIN:
            failed.append(runs[0].method)
    print(
        f"\n{options.seeds} seeds, {options.epochs} epochs, 360 test images, one thread each, "
        f"{options.jobs} at a time, {time.perf_counter() - began:.0f} s in all"
    )
    if failed:
        sys.exit(f"gain below {MARGIN} points: {', '.join(failed)}")


if __name__ == "__main__":
    main()
