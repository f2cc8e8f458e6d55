"""Look at the images and at the machine."""

import contextlib
import math
import shutil
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from selfsight import distributed
from selfsight.data import check as checking
from selfsight.data.config import DataConfig
from selfsight.data.decode import JPEG, stored
from selfsight.data.formats import TIFF
from selfsight.data.measure import normalization_of
from selfsight.data.pack.read import Pack
from selfsight.data.source import Decoding, Source, Watch, WrongChannels
from selfsight.data.sources.open import open_source
from selfsight.data.values import OtherChannels
from selfsight.errors import UserError
from selfsight.logging.log import print_notes
from selfsight.suggest.facts import ImageFacts, Machine
from selfsight.train.precision import (
    device_name,
    physical_memory,
    pick_device,
    pick_precision,
)

LOOKED_AT = 2_000  # images of a split that are read and decoded
PROBED = 32  # images that say how many channels and bits there are, evenly spread
# Differences of a mean or a standard deviation, for pixels in [0, 1], from those of ImageNet's
# photographs that make no difference to training.
NEAR = 0.1
USUAL = DataConfig()


def look_at_machine(device: str, folder: Path) -> Machine:
    """The device that a run would use, and the disk that holds the folder.

    Raises: UserError for a device that does not exist.
    """
    found = pick_device(device)
    memory = physical_memory()
    if found.type == "cuda":
        memory = float(torch.cuda.get_device_properties(found).total_memory)
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return Machine(
        kind=found.type,
        name=device_name(found),
        memory=memory,
        cores=distributed.cores(),
        bf16=pick_precision("auto", found) == "bf16",
        disk=float(shutil.disk_usage(there).free),
    )


def look_at_images(data: DataConfig, watch: Watch) -> ImageFacts:
    """What the images are, whatever number of channels and bits they have.

    Args:
        data: the keys that the user gave; channels, bits and range are found out without them.
    Raises: UserError if there are no images, or if none of them can be decoded.
    """
    keys = _find_depth(data)
    given = data.model_dump(exclude_unset=True)
    readable = DataConfig(**given | keys)
    report = checking.check(readable, watch, LOOKED_AT)
    train = report.splits[0]
    print_notes(train.whole)
    if len(train.whole) < 2:
        raise UserError(f"{_where(data)}: holds only one image; two are the least to train on")
    seen = [m for m in train.moments if m is not None]
    if not seen:
        name, reason = train.broken[0]
        raise UserError(f"{_where(data)}: none of the images can be decoded: {name}: {reason}")
    channels = keys.get("channels", data.channels)
    free = not given.keys() & {"channels", "mean", "std"}
    if channels == 3 and free and all((m == m[:, :1]).all() for m in seen):
        channels = 1  # red, green and blue are equal in each image
    deep = data.bits == 16 or bool(keys.keys() & {"bits", "range"})
    return _facts(readable, report, channels, deep)


def _facts(data: DataConfig, report: checking.Report, channels: int, deep: bool) -> ImageFacts:
    train, *others = report.splits
    sizes = train.sizes[train.sizes.all(axis=1)]
    colours = normalization_of(train.moments)
    counts = [count for _, count in train.counts()]
    test = others[0] if others else None
    return ImageFacts(
        count=len(train.whole),
        looked=len(train.source),
        channels=channels,
        deep=deep,
        shorter=int(median(sizes.min(axis=1).tolist())),
        ratio=float(median((sizes.max(axis=1) / sizes.min(axis=1)).tolist())),
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        usual_colours=channels == 3 and _near_photographs(*colours),
        classes=len(counts),
        least=min(counts, default=0),
        most=max(counts, default=0),
        broken=len(train.broken),
        example=": ".join(train.broken[0]) if train.broken else "",
        repeated=sum(len(group) - 1 for group in train.twins),
        test=len(test.whole) if test else 0,
        own_test=test is not None and _has_own_test(data, train.whole),
        shared=len(report.shared),
        decoded=isinstance(train.whole, Pack) or _is_array(train.source),
    )


def _is_array(source: Source) -> bool:
    """Whether an image that can be read is no file to decode."""
    with contextlib.suppress(OSError, UserError):  # the file is missing, or of a lost disk
        return isinstance(source.read(0), np.ndarray)
    return False


def _near_photographs(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    found, usual = (*mean, *std), (*USUAL.mean, *USUAL.std)
    return all(math.isclose(a, b, abs_tol=NEAR) for a, b in zip(found, usual, strict=True))


def _has_own_test(data: DataConfig, train: Source) -> bool:
    """Whether there is a test split without holding out training images, which needs labels.

    Args:
        data: keys that open the images.
    """
    if train.classes is None:
        return True
    free = {"labels": False}
    if isinstance(data.range, str):  # which is measured on training images: any numbers will do
        free["range"] = (0.0, 1.0)
    return open_source(data.model_copy(update=free), "test") is not None


def _where(data: DataConfig) -> str:
    return f"data.source={data.source}" if data.path is None else f"data.path={data.path}"


def _find_depth(data: DataConfig) -> dict[str, Any]:
    """The keys `channels`, `bits` and `range` that the images need and that are not given."""
    source, channels = _open(data)
    kinds = Counter()
    for i in np.unique(np.linspace(0, len(source) - 1, PROBED).round().astype(int)).tolist():
        found = _stored(source, i)
        if found is not None:
            kinds[found] += 1
    given, keys = data.model_fields_set, {}
    if kinds and "channels" not in given and channels == USUAL.channels:
        number = Counter(n for n, _ in kinds.elements()).most_common(1)[0][0]
        channels = 3 if number == 1 else number  # its pixels show later whether it is gray
    if channels != USUAL.channels and "channels" not in given:
        keys["channels"] = channels
    deep = any(dtype != "uint8" for _, dtype in kinds)
    if deep:
        keys |= {k: v for k, v in (("bits", 16), ("range", "auto")) if k not in given}
    return keys


def _open(data: DataConfig) -> tuple[Source, int]:
    """The training split, and the number of channels that it was opened with."""
    given = data.model_dump(exclude_unset=True)
    given.setdefault("range", "auto")  # floating-point numbers need one
    try:
        return open_source(DataConfig(**given), "train"), data.channels
    except WrongChannels as error:
        if "channels" in given:
            raise
        for channels in error.found:
            try:
                # mean and std are of other channels than those that are tried
                again = DataConfig(**{**given, "channels": channels})
                return open_source(again, "train"), channels
            except UserError:
                continue
        raise


def _stored(source: Source, i: int) -> tuple[int, str] | None:
    """Channels of an image and the type of its values, as they are stored; None if it is broken."""
    # On damaged files decoders raise more kinds of exceptions than their documentation lists; the
    # check of all images names these files, with the reason.
    with contextlib.suppress(Exception):
        data = source.read(i)
        if isinstance(data, np.ndarray):
            return data.shape[2], data.dtype.name
        if data.startswith(JPEG):
            return 3, "uint8"
        channels, dtype = _of_file(data, 3)
        if channels == 1 and data.startswith(TIFF):
            # Bands may be pages, of which a reader of colours takes the first.
            with contextlib.suppress(Exception):
                return _of_file(data, 2)
        return channels, dtype
    return None


def _of_file(data: bytes, channels: int) -> tuple[int, str]:
    """What the file has, whatever `channels` asks for. Raises: any exception."""
    how = Decoding(range=(0, 65535), channels=channels)
    try:
        values = stored(data, how)
    except OtherChannels as error:
        values = stored(data, how._replace(channels=error.found))
    return sum(v.array.shape[2] for v in values), values[0].array.dtype.name
