"""Data sets of your own: any object with `len` and images by index, such as torch's Dataset."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from selfsight import blame
from selfsight.data.config import DataConfig
from selfsight.data.decode import USUAL, picture
from selfsight.data.formats import DEEP, as_image
from selfsight.data.labels import as_classes
from selfsight.data.names import NameBlock, numbered
from selfsight.data.source import content_hash
from selfsight.errors import UserError
from selfsight.own import Part

READ_TWICE = 8  # images of a data set, evenly spread, whose two reads are compared


class Dataset:
    """The images of a data set that is read by index.

    An item is an image, or (image, label). An image is a PIL image, the bytes of an image file, or
    pixels: an array (H, W) or (H, W, C), or a tensor (C, H, W), of uint8 or of whole numbers of
    more bits; with data.range also of floating-point numbers. Two reads of an index must give the
    same image: the views are made by Selfsight, so that a run can continue exactly. Labels are
    taken from an attribute `targets` or `labels` of the data set; without one, all items are read
    for them, once.

    Threads read one at a time, since a data set may share an open file among them; those of a data
    set with the attribute `thread_safe = True` read at the same time.

    Args:
        where: what an error message calls it.
        keys: data.channels and data.range are read.
        split: a part of the images' names, if the data set has splits: a name is of one image.
    Raises: UserError for items that are not as described.
    """

    def __init__(
        self,
        dataset: Any,
        labels: bool,
        where: str,
        split: str = "",
        keys: DataConfig = DataConfig(),  # noqa: B008 (frozen)
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UserError(
                f"{where}: images are read by their index, in an order that a run can repeat; "
                f"define __getitem__ and __len__"
            )
        self._dataset, self._where = dataset, where
        self._channels, self._floats = keys.channels, keys.range is not None
        self._usual = (1, 3) if keys.channels in (1, 3) else (keys.channels,)
        self._files = [blame.source_file(dataset)]  # once: looking it up takes longer than a read
        self._name = f"{where.removeprefix('data.source=')} {split}".strip()
        safe = getattr(dataset, "thread_safe", False)
        self._lock = contextlib.nullcontext() if safe else threading.Lock()
        if not len(dataset):
            raise UserError(f"{where}: holds no images")
        self.classes = self.labels = None
        self.notes: list[str] = []
        self._check()
        if labels and _is_pair(self._item(0)):
            self._read_labels()

    def __len__(self) -> int:
        return len(self._dataset)

    def __reduce__(self) -> tuple:
        raise TypeError("a data set of the user's own is opened by each process")

    def read(self, i: int) -> bytes | np.ndarray:
        item = self._item(i)
        image = item[0] if _is_pair(item) else item
        if isinstance(image, bytes):
            return image
        with blame.blamed(self._files):
            if isinstance(image, Image.Image):
                if image.mode in DEEP:
                    return np.asarray(image)[..., None]
                return picture(image, USUAL._replace(channels=self._channels))
        return self._pixels(image, i)

    def name(self, i: int) -> str:
        return f"{self._name} {i}"

    def name_blocks(self) -> Iterator[NameBlock]:
        return numbered(self._name, len(self))

    def _item(self, i: int) -> Any:
        with self._lock, blame.blamed(self._files):
            return self._dataset[i]

    def _pixels(self, image: Any, i: int) -> np.ndarray:
        """(H, W, C) numbers; gray uint8 as RGB. Raises: UserError for anything else than pixels."""
        found = f"{type(image).__name__}"
        if isinstance(image, (np.ndarray, Tensor)):
            found += f" of {image.dtype} {tuple(image.shape)}"
            array = np.asarray(image)
            if array.ndim in (2, 3) and array.dtype.kind in ("iuf" if self._floats else "iu"):
                planes = isinstance(image, Tensor) and array.ndim == 3
                array = array.transpose(1, 2, 0) if planes else as_image(array, self._channels)
                if array.shape[2] not in self._usual:
                    raise self._refused(i, found)
                gray = array.dtype == np.uint8 and array.shape[2] == 1 and self._channels == 3
                array = np.broadcast_to(array, (*array.shape[:2], 3)) if gray else array
                return np.ascontiguousarray(array)
        if isinstance(image, str):
            found += f" ('{image}')"
        raise self._refused(i, found)

    def _refused(self, i: int, found: str) -> UserError:
        return UserError(
            f"{self._where}: item {i} is a {found}; return a PIL image, the bytes of an image file "
            f"or pixels of whole numbers with data.channels={self._channels} channels, before any "
            f"transform (of floats, data.range=[0, 1])"
        )

    def _check(self) -> None:
        """Two reads of an image agree."""
        places = np.linspace(0, len(self) - 1, READ_TWICE).round().astype(int)
        for i in np.unique(places).tolist():
            if content_hash(self.read(i)) != content_hash(self.read(i)):
                raise UserError(
                    f"{self._where}: two reads of image {i} differ, so that a run could not "
                    f"continue exactly; return the images without random transforms, since "
                    f"Selfsight makes the views"
                )

    def _read_labels(self) -> None:
        values = self._attribute()
        if values is None:
            values = [self._item(i)[1] for i in range(len(self))]
            self.notes.append(
                f"{self._where}: all {len(self):,} items were read for their labels; an attribute "
                f"`targets` that lists the labels avoids this"
            )
        self.classes, self.labels = as_classes(values, len(self), self._where)
        names = getattr(self._dataset, "classes", None)
        numbers = [int(name) if name.isdecimal() else -1 for name in self.classes]
        named = isinstance(names, (list, tuple)) and len(names) == len(set(map(str, names)))
        if named and 0 <= min(numbers) <= max(numbers) < len(names):
            self.classes = [str(names[number]) for number in numbers]

    def _attribute(self) -> np.ndarray | None:
        """The labels in an attribute, if the first and the last item have the same."""
        for name in ("targets", "labels"):
            values = getattr(self._dataset, name, None)
            if values is not None and not callable(values) and len(values) == len(self):
                values = np.asarray(values)
                ends = (0, len(self) - 1)
                if all(np.array_equal(values[i], np.asarray(self._item(i)[1])) for i in ends):
                    return values
        return None


def open_part(
    part: Part, split: str, path: str | None, keys: DataConfig
) -> tuple[Dataset | None, bool]:
    """One split of a data set of the user's own, and whether the data set has splits itself.

    A class or function is called with those of these arguments that it has: `split` ("train" or
    "test"), `train` (bool) and `path` (data.path). It returns a data set, or None without a test
    split. A data set without splits is the same for both.
    """
    value, divided = part.value, False
    where = f"data.source={part.name}"
    if isinstance(value, Mapping):
        value, divided = value.get(split), True
    elif not hasattr(value, "__getitem__") or inspect.isclass(value):
        if not callable(value):
            raise UserError(f"{where}: is a {type(value).__name__} and not a data set")
        known = {"split": split, "train": split == "train", "path": path}
        asked = _parameters(value)
        divided = bool({"split", "train"} & asked)
        with blame.blamed([value]):
            value = value(**{key: known[key] for key in known if key in asked})
    if value is None and split == "test" and divided:
        return None, True
    return Dataset(value, keys.labels, where, split if divided else "", keys), divided


def _parameters(value: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(value).parameters)
    except (TypeError, ValueError):  # of C code
        return set()


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2


def is_dataset(value: Any) -> bool:
    """Whether an object is a data set, and neither a path nor keys."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
        return False
    return hasattr(value, "__len__") and not (
        isinstance(value, Iterable) and all(isinstance(v, str) for v in value)
    )
