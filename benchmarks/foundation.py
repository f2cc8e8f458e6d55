"""Distillation on digits: is it worth its time, and what does it cost?

`learn`: a small student distilled from a run of digits/simclr, and the same student trained by
SimCLR for the same wall time; kNN accuracy of both on the 360 test images. Fails if distillation
does not win in the mean over the seeds.

`cost`: a step of distillation against the student's own step (the same heads and loss on targets
that cost nothing) plus the teacher's forward pass, each alone, in turns. Fails above 5 %.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ALLOWED = 1.05


def pretrain(folder: Path, recipe: str, *keys: str) -> tuple[float, float]:
    """kNN accuracy in %, and seconds of training."""
    import selfsight

    keys = (*keys, "evaluate.every_epochs=0", "device=cpu", "precision=fp32")
    from selfsight.pretraining.config import compose
    from selfsight.pretraining.job import pretrain as run

    run(compose(recipe, list(keys), str(folder)).config, quiet=True)
    (found,) = selfsight.knn(folder, ["untrained=false", "pixels=false"])
    return 100 * found.metrics["k20"], found.cost["pretrain_seconds"]


def learn(seeds: int, epochs: int) -> bool:
    """Print a table; whether distillation wins."""
    student = "backbone.options={channels: [8, 16, 32, 64]}"
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        score, seconds = pretrain(home / "teacher", "digits/simclr", "seed=100")
        print(f"teacher: {score:.1f} %, {seconds:.0f} s\n")
        print("| seed | distilled, % | s | SimCLR, % | s | epochs |\n|---|---|---|---|---|---|")
        gains = []
        for seed in range(seeds):
            keys = [f"seed={seed}", f"epochs={epochs}", f"teacher.weights={home / 'teacher'}"]
            ours, spent = pretrain(home / f"d{seed}", "digits/distill", *keys)
            keys = [f"seed={seed}", student]
            _, short = pretrain(home / f"t{seed}", "digits/simclr", *keys, "epochs=5")
            longer = max(1, round(5 * spent / short))
            theirs, took = pretrain(home / f"s{seed}", "digits/simclr", *keys, f"epochs={longer}")
            print(f"| {seed} | {ours:.1f} | {spent:.1f} | {theirs:.1f} | {took:.1f} | {longer} |")
            gains.append(ours - theirs)
    spread = statistics.stdev(gains) if seeds > 1 else 0.0
    print(f"\ndistilled - SimCLR: {statistics.mean(gains):+.1f} ± {spread:.1f} points, n = {seeds}")
    return statistics.mean(gains) > 0


def cost(rounds: int, batch: int, size: int) -> bool:
    """Print the ratio; whether it is within 5 %."""
    import timm

    from selfsight.methods import Distill
    from selfsight.methods.frozen import FrozenTeacher

    class Free(FrozenTeacher):
        """A teacher that has already said it."""

        def forward(self, x):
            return self.answer if len(x) == batch else super().forward(x)

    def made(kind: type[FrozenTeacher]) -> Distill:
        torch.manual_seed(0)
        student = timm.create_model("resnet18", num_classes=0)
        teacher = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=size)
        sample = torch.zeros(1, 3, size, size)
        method = Distill(student, Distill.Config(), kind(teacher), sample).train()
        return method.to(memory_format=torch.channels_last)

    x = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    whole, free = made(FrozenTeacher), made(Free)
    free.teacher.answer = whole.teacher(x)

    def step(method: Distill) -> None:
        method(x).loss.backward()
        method.zero_grad()

    def seconds(work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    ratios = []
    for number in range(rounds + 2):
        both = seconds(lambda: step(whole))
        parts = seconds(lambda: step(free)) + seconds(lambda: whole.teacher(x))
        if number >= 2:  # the first are warm-up
            ratios.append(both / parts)
    middle = statistics.median(ratios)
    print(
        f"distillation / (student's step + teacher's forward): {middle:.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, n = {rounds}; batch {batch}, {size} px)"
    )
    return middle <= ALLOWED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["learn", "cost"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    options = parser.parse_args()
    if options.what == "learn":
        passed = learn(options.seeds, options.epochs)
    else:
        passed = cost(options.rounds, options.batch, options.size)
    if not passed:
        sys.exit("not as claimed")


if __name__ == "__main__":
    main()
