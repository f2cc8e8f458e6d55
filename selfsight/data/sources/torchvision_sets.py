"""torchvision's data sets by name: CIFAR-10, STL-10 and others."""

import numpy as np

from selfsight.config import near
from selfsight.data.source import first_line
from selfsight.data.sources.download import downloads
from selfsight.errors import UserError


class Torchvision:
    """A data set of torchvision that yields (image, label); downloaded at the first use.

    Args:
        root: folder of its files; None: the default folder for downloads.
        split: "train", "test", or another split that the data set has.
    """

    def __init__(self, name: str, root: str | None, split: str, labels: bool = True) -> None:
        import torchvision.datasets as datasets

        cls = getattr(datasets, name, None)
        if not isinstance(cls, type):
            hint = near(name, [n for n in dir(datasets) if n[0].isupper()])
            raise UserError(f"data.source=torchvision:{name}: no such data set.{hint}")
        folder = root or str(downloads())
        which = {"split": split}
        if "split" not in cls.__init__.__annotations__:
            which = {"train": split == "train"}
            if split not in ("train", "test"):
                raise UserError(
                    f"data.source=torchvision:{name}:{split}: {name} has a train and a test split "
                    f"only"
                )
        try:
            self._data = cls(folder, download=True, **which)
        except Exception as error:  # downloads raise too many kinds of exceptions to list
            raise UserError(
                f"data.source=torchvision:{name}, data.path={folder}: {first_line(error)}. Without "
                f"a network, copy the files into that folder or use another source"
            ) from None
        self._name, self._split = name, split
        self.classes = self.labels = None
        if labels and hasattr(self._data, "classes"):
            targets = getattr(self._data, "targets", getattr(self._data, "labels", None))
            if targets is None:
                targets = [self._data[i][1] for i in range(len(self._data))]
            numbers = np.asarray(targets, np.int64)
            if numbers.min() >= 0:  # -1: no label, as in parts of STL-10
                self.classes, self.labels = list(self._data.classes), numbers

    def __len__(self) -> int:
        return len(self._data)

    def read(self, i: int) -> np.ndarray:
        return np.asarray(self._data[i][0].convert("RGB"))

    def name(self, i: int) -> str:
        return f"torchvision:{self._name} {self._split} {i}"
