"""Tiles of two photographs that come with scikit-learn."""

import numpy as np
from sklearn.datasets import load_sample_images

SIDE = 32  # pixels


class Tiles:
    """Tiles of 32 px; the class is the photograph. Every fifth column of tiles is for testing.

    Args:
        split: "train" or "test", as Selfsight asks for it.
    """

    classes = ("china", "flower")
    thread_safe = True  # `__getitem__` only reads an array

    def __init__(self, split: str) -> None:
        tiles, targets = [], []
        for label, photograph in enumerate(load_sample_images().images):
            rows, columns = (n // SIDE for n in photograph.shape[:2])
            for row in range(rows):
                for column in range(columns):
                    if (column % 5 == 4) == (split == "test"):
                        top, left = row * SIDE, column * SIDE
                        tiles.append(photograph[top : top + SIDE, left : left + SIDE])
                        targets.append(label)
        self.tiles, self.targets = np.stack(tiles), targets

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.tiles[i], self.targets[i]
