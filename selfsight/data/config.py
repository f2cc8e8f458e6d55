"""The keys `data.*`."""

from numbers import Real
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from selfsight.batch import MOST_CHANNELS, Normalization
from selfsight.config import Config, Tree, added, may_change

# Keys of how images are read, not of which they are.
LOADING_KEYS = ("mean", "std", "in_memory", "workers", "max_bad", "patience")
PATHS = ("path", "test_path", "image_dir", "test_image_dir")
PathSpec = str | tuple[str, ...]  # one path, or several


class DataConfig(Config):
    """Which images; see `open_source` for how a path is read."""

    # auto, digits, folder, list, pack, parquet, arrays, webdataset, or a name of a library's:
    # huggingface:NAME, torchvision:CIFAR10 and its like; a third part names the split to train on,
    # where it is not "train": torchvision:STL10:unlabeled; or a data set of your own: FILE.py:NAME
    source: str = "auto"
    # file or folder, or several of them; of torchvision and huggingface where they keep theirs
    path: PathSpec | None = None
    test_path: PathSpec | None = None  # of the test images, where they are not beside the others
    # of a list: where its paths start (default: the list's folder); of several lists, one each
    image_dir: PathSpec | None = None
    test_image_dir: PathSpec | None = None  # the same of test_path, where it is another
    labels: bool = True  # false: read no labels even where there are some
    limit: int | None = Field(None, ge=2)  # at most so many training images, drawn by coordinates
    fraction: float = Field(1.0, gt=0, le=1)  # or this share of them
    test_fraction: float = Field(0.2, gt=0, lt=1)  # held out of a labelled set without a test split
    # of an image: 1 (gray), 3 (RGB), or 2 to 32 bands
    channels: int = added(3, ge=1, le=MOST_CHANNELS)
    # of a value: 16 keeps the depth of images that have more than 8
    bits: Literal[8, 16] = added(8)
    # of a list whose paths hold "{band}": what stands there in the file of each band
    bands: tuple[str, ...] | None = added(None)
    # of pixels in [0, 1], one number a channel, subtracted; auto: measured on the training images,
    # the default unless there are 3 channels
    mean: Literal["auto"] | tuple[float, ...] = (0.485, 0.456, 0.406)
    std: Literal["auto"] | tuple[float, ...] = (0.229, 0.224, 0.225)  # divided by; or auto
    # of images with more than 8 bits: (lowest, highest) value, which become the least and the most;
    # auto: where 99.8 % of the training images' values are; full: all values that 16 bits hold
    # (default: what the bits of the training images allow)
    range: Literal["full", "auto"] | tuple[float, float] | None = added(None)
    max_pixels: int = added(89_478_485, ge=1)  # larger images are refused: decompression bombs
    in_memory: bool | None = None  # decode once and keep (default: equal images up to 96 px)
    workers: int | None = may_change(None, ge=1)  # decoding threads (default: one for each core)
    # the share of images that may be broken; training replaces them, and stops if there are more
    max_bad: float = may_change(0.001, ge=0, le=1)
    patience: float = may_change(60.0, ge=0)  # seconds to wait while a disk or network fails

    @model_validator(mode="before")
    @classmethod
    def _measured(cls, keys: Any) -> Any:
        """ImageNet's mean and std are of 3 channels alone."""
        if isinstance(keys, dict) and keys.get("channels", 3) != 3:
            return {"mean": "auto", "std": "auto", **keys}
        return keys

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_a_channel(cls, value: Any, info: ValidationInfo) -> Any:
        channels = info.data.get("channels")  # None: refused for itself
        if value == "auto" or channels is None:
            return value
        if not isinstance(value, (list, tuple)) or not all(map(_is_number, value)):
            raise ValueError("give a list of numbers, one a channel, or auto")
        if len(value) != channels:
            raise ValueError(
                f"{len(value)} numbers for data.channels={channels}; give {channels}, or set "
                f"data.{info.field_name}=auto to measure them on the training images"
            )
        return value

    @field_validator("mean")
    @classmethod
    def _mean(cls, mean: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if mean != "auto" and not all(0 <= value <= 1 for value in mean):
            raise ValueError("pixels are from 0 to 1, and so is their mean; divide 0 to 255 by 255")
        return mean

    @field_validator("std")
    @classmethod
    def _std(cls, std: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if std != "auto" and not all(0 < value <= 1 for value in std):
            raise ValueError(
                "pixels, from 0 to 1, are divided by it: each must be above 0 and at most 1; "
                "divide 0 to 255 by 255"
            )
        return std

    @field_validator("range", mode="before")
    @classmethod
    def _range(cls, range: Any) -> Any:
        if range is None or range in ("full", "auto"):
            return range
        pair = isinstance(range, (list, tuple)) and len(range) == 2
        if not pair or not all(map(_is_number, range)):
            raise ValueError("give [lowest, highest], full or auto")
        if not range[0] < range[1]:
            raise ValueError("give the lowest value, then the highest")
        return range

    @field_validator("bands")
    @classmethod
    def _bands(cls, bands: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        channels = info.data.get("channels")
        if bands is not None and channels not in (None, len(bands)):
            raise ValueError(
                f"{len(bands)} bands, and data.channels={channels}; set data.channels={len(bands)}"
            )
        return bands

    @property
    def normalization(self) -> Normalization:
        """Of keys without auto (see `measure.settled`)."""
        if "auto" in (self.mean, self.std):
            raise RuntimeError("data.mean=auto, data.std=auto: not measured yet")
        return Normalization(self.mean, self.std)


def with_source(layer: Tree) -> Tree:
    """The keys `data.*` of a layer; if it sets a path, data.source becomes "auto" by default."""
    return {"source": "auto", **layer} if layer.get("path") is not None else layer


def several(paths: PathSpec | None) -> list[str]:
    """A list of one path, of several, or of none."""
    return [paths] if isinstance(paths, str) else list(paths or [])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
