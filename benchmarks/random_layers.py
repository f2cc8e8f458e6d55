"""What random layers that follow the images cost: `python -m benchmarks.random_layers`.

A step of SimCLR with a ViT-S/16 of images of 224 px on one core, with the numbers of torch's
generator and with those of the images, in turns. Times are of the processor, not of the clock.
"""

import argparse
import time
from statistics import median

import timm
import torch

from benchmarks.common import machine
from selfsight.batch import batch_of
from selfsight.methods import SimCLR
from selfsight.random_layers import follow_images

KINDS = {"drop_path=0.1": {"drop_path_rate": 0.1}, "proj_drop_rate=0.1": {"proj_drop_rate": 0.1}}


def method_of(options: dict[str, float], follow: bool) -> SimCLR:
    torch.manual_seed(0)
    method = SimCLR(timm.create_model("vit_small_patch16_224", num_classes=0, **options))
    if follow:
        follow_images(method, method.backbone)
    return method.train()


def step(method: SimCLR, views: torch.Tensor) -> float:
    began = time.process_time()
    method(batch_of(*views, seed=0)).loss.backward()
    method.zero_grad()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    views = torch.rand(2, arguments.images, 3, 224, 224)
    print(f"{machine()}\n\n| layers | seconds a step, torch's | the images' | ratio |")
    print("|---|---|---|---|")
    for name, options in KINDS.items():
        methods = [method_of(options, follow) for follow in (False, True)]
        taken = [[step(method, views) for method in methods] for _ in range(arguments.rounds + 1)]
        before, after = zip(*taken[1:], strict=True)  # the first warms up
        ratios = sorted(b / a for a, b in zip(before, after, strict=True))
        shown = f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, n={len(ratios)})"
        print(f"| {name} | {median(before):.2f} | {median(after):.2f} | {shown} |")


if __name__ == "__main__":
    main()
