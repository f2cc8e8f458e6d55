"""Images, or features, with their labels, as a caller has them."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from selfsight.data.sources.dataset import is_dataset
from selfsight.errors import UserError


def numbers(labels: Any) -> Any:
    return labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels


class Pairs:
    """Images and their labels as a data set."""

    thread_safe = True

    def __init__(self, images: Any, labels: Any) -> None:
        self._images, self.targets = images, numbers(labels)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        image = self._images[i]
        if isinstance(image, (str, os.PathLike)):
            image = Path(image).read_bytes()
        return image, self.targets[i]


def dataset_of(name: str, value: Any) -> Any:
    """(images, labels) or a data set of such pairs, as a data set."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and hasattr(value[0], "__len__"):
        images, labels = value
        if len(images) != len(labels):
            raise UserError(f"{name}: {len(images)} images and {len(labels)} labels")
        return Pairs(images, labels)
    if is_dataset(value):
        return value
    raise UserError(f"{name}: give (images, labels), or a data set of such pairs")
