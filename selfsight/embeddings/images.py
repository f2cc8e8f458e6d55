"""The images whose features are read: every split that there is, or one of them."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from selfsight import agreement, distributed
from selfsight import config as layers
from selfsight.config import Config, Tree
from selfsight.data.bad import BadImages
from selfsight.data.by_machine import by_machine
from selfsight.data.config import PATHS, DataConfig
from selfsight.data.identity import identity
from selfsight.data.images import Images
from selfsight.data.measure import settled
from selfsight.data.source import Source, cache_beside, stamp
from selfsight.data.sources.open import open_source, relocated, with_range
from selfsight.encoders.backbones import BackboneConfig
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import compose_cached
from selfsight.evaluate.protocols.target import EvaluationTarget
from selfsight.logging.log import print_notes
from selfsight.train.precision import Precision
from selfsight.views.recipe import Size

SPLITS = ("train", "test")
# Keys of which images; the others say how they are read, as they were for the pretraining.
WHICH = (*PATHS, "source", "labels", "limit", "fraction", "test_fraction")
UNIMPORTANT = {"workers", "patience", "max_bad"}  # keys that change no feature


class EmbedConfig(Config):
    """What `selfsight embed` reads."""

    data: DataConfig = DataConfig()
    seed: int = Field(0, ge=0)  # of the projection
    device: str = "auto"
    precision: Precision = "auto"
    # for weights that another library wrote:
    backbone: BackboneConfig | None = None
    image_size: Size | None = None  # side in pixels, or [height, width] (default: the encoder's)
    # crop: the central part of an image; squash: all of it (default: the encoder's)
    resize: Resize | None = None
    format: str | None = None  # of the file (default: recognised by its keys)


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        about: the number of images, of classes, and hashes of names, labels and contents (of files
            of a sample of the contents), see `data.identity`.
    """

    name: str
    source: Source
    about: dict[str, Any]

    def opened(self, data: DataConfig, device: torch.device, bad: Path) -> Images:
        """Ready to be decoded; `bad` is the file that lists broken ones."""
        broken = BadImages(bad, len(self.source), data.max_bad)
        return Images(self.source, data, device, broken, lazy=True)

    def classes(self) -> list[str | None]:
        """The name of the class of each image, None without labels."""
        if self.source.labels is None:
            return [None] * len(self.source)
        return [self.source.classes[label] for label in self.source.labels.tolist()]


def compose(target: EvaluationTarget, overrides: list[str]) -> EmbedConfig:
    """The configuration: the encoder's own, then key=value.

    With other images than those of the pretraining, keys such as data.limit are not the run's.
    Raises: UserError if no images are known.
    """
    base: Tree = dict(target.base)
    data = dict(base.get("data", {}))
    asked = layers.fold({}, overrides).get("data")
    asked = asked if isinstance(asked, dict) else {}
    if asked.get("path") is not None or asked.get("source") is not None:
        data = {key: value for key, value in data.items() if key not in WHICH}
    elif "source" not in data:
        raise UserError(
            "No images: the encoder does not say which it was pretrained on; name some, as a path "
            "or with data.path=..."
        )
    config = compose_cached(EmbedConfig, {**base, "data": data}, overrides)
    # absolute, since paths become the names of the images
    moved = relocated(dict(config.data), os.path.abspath)
    return config.model_copy(update={"data": config.data.model_copy(update=moved)})


def open_splits(
    config: EmbedConfig, target: EvaluationTarget, only: str | None
) -> tuple[list[Split], DataConfig]:
    """The splits, train first, and the keys of the data with mean and std as numbers.

    Args:
        only: train or test; None: each that there is.
    Raises: UserError for a split that does not exist; for images that cannot be read.
    """

    def work() -> tuple[list[Split], Source]:
        if only not in (None, *SPLITS):
            raise UserError(f"--split {only}: must be train or test; leave it out for both")
        cache = target.home and cache_beside(target.home)
        train = open_source(config.data, "train", cache)
        test = open_source(with_range(config.data, train), "test", cache)
        there = {"train": train, "test": test}
        found = [name for name in SPLITS if there[name] is not None and only in (None, name)]
        if not found:
            raise UserError(f"--split {only}: these images have no such split; leave it out")
        return [Split(name, there[name], _about(there[name])) for name in found], train

    splits, train = by_machine(
        work, lambda found: {f"the {s.name} images": str(s.about) for s in found[0]}
    )
    if distributed.rank() == 0:
        print_notes(train)
    return splits, agreement.by_first(lambda: settled(config.data, train))


def _about(source: Source) -> dict[str, Any]:
    """The identity of a split, with one hash in place of those of a sample of the contents."""
    found = identity(source)
    sample = json.dumps(found.pop("sample"), sort_keys=True)
    contents = found["contents"] or hashlib.blake2b(sample.encode(), digest_size=16).hexdigest()
    return {**found, "contents": contents}


def stamp_of(splits: list[Split]) -> str | None:
    """A fingerprint of the files of all splits, None where one has none."""
    found = [stamp(split.source) for split in splits]
    return None if None in found else " ".join(map(str, found))


def batches(count: int, step: int, first: int) -> np.ndarray:
    """The rows of the batches of a split, each its first and its end, counted from `first`."""
    starts = np.arange(0, count, step)
    return first + np.stack([starts, np.minimum(starts + step, count)], 1)
