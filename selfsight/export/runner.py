"""Run the code of a model card on images. It imports nothing of Selfsight, since it is also a
program: python runner.py CODE IMAGES OUTPUT, which a process without Selfsight can run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (1, 2)  # beside all images at once


def run(code: str, folder: str, images: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """What the code makes of the images.

    Args:
        code: defines `prepare` and `features`, given the name `folder`.
        images: PIL images or arrays.
    Returns: the prepared images (N, C, h, w), and features of the first one, of the first two, and
        of all.
    """
    names: dict[str, Any] = {"folder": folder}
    exec(compile(code, "README.md", "exec"), names)
    prepared = [names["prepare"](image) for image in images]
    if not isinstance(prepared[0], np.ndarray):
        prepared = [image.numpy() for image in prepared]
        import torch

        def features(batch: np.ndarray) -> np.ndarray:
            return names["features"](torch.from_numpy(batch)).numpy()
    else:
        features = names["features"]
    pixels = np.stack(prepared)
    batches = [pixels[:count] for count in (*BATCHES, len(pixels))]
    return pixels, [np.asarray(features(batch), np.float32) for batch in batches]


def main(code: str, folder: str, given: str, output: str) -> None:
    from PIL import Image

    with np.load(given) as file:
        images = [file[str(n)] for n in range(len(file.files) - 1)]
        if file["pil"]:
            images = [Image.fromarray(image) for image in images]
    pixels, found = run(Path(code).read_text(encoding="utf-8"), folder, images)
    if "selfsight" in sys.modules:
        raise SystemExit("the exported model has imported selfsight")
    np.savez(output, pixels, *found)


if __name__ == "__main__":
    main(*sys.argv[1:])
