"""Two SimCLR views of CIFAR-10 images on one thread: Selfsight against lightly's transform."""

import time
from collections.abc import Callable

import numpy as np
import torch
from lightly.transforms import SimCLRTransform

from benchmarks.common import MEAN, STD, arguments, machine, pictures, report, start
from selfsight.batch import Normalization, SampleKey
from selfsight.train.precision import prepare
from selfsight.views.make import make_views
from selfsight.views.recipe import ViewGroup, preset


def rate(work: Callable[[], None], images: int) -> float:
    began = time.perf_counter()
    work()
    return images / (time.perf_counter() - began)


def compare(decoded: list, blur: float, rounds: int) -> tuple[list[float], list[float]]:
    """Images/s of both, measured in turns. Decoded images in, float tensors out."""
    theirs = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=blur)
    groups = [ViewGroup(**{**group, "blur": blur}) for group in preset("simclr-small")]
    pixels = torch.from_numpy(np.stack([np.array(p) for p in decoded]))
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    index = torch.arange(len(decoded))

    def ours() -> None:
        for rows in index.split(256):
            make_views(pixels[rows], groups, SampleKey(0, 0, rows), Normalization(MEAN, STD))

    def lightlys() -> None:
        for picture in decoded:
            theirs(picture)

    ours()
    lightlys()
    pairs = [(rate(ours, len(decoded)), rate(lightlys, len(decoded))) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare(torch.device("cpu"))  # as training does
    print(machine())
    decoded = pictures(options.data, options.images)
    for blur in (0.0, 0.5):
        title = f"two views at 32 px, blur {blur}"
        report(title, *compare(decoded, blur, options.rounds), "images/s")


if __name__ == "__main__":
    start(main)
