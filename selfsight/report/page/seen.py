"""The images that a page shows, beside what the encoder makes of them: features, neighbours,
predictions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight import agreement, randomness
from selfsight.batch import ImageSize, sides
from selfsight.data.bad import BadImages
from selfsight.data.config import LOADING_KEYS
from selfsight.data.images import Images
from selfsight.data.measure import settled
from selfsight.data.source import cache_beside
from selfsight.data.sources.open import open_source
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.evaluate.features import extract, plain_views
from selfsight.evaluate.knn import neighbours, vote
from selfsight.evaluate.protocols.config import KnnConfig, compose_cached
from selfsight.evaluate.protocols.opened import open_features
from selfsight.evaluate.protocols.target import EvaluationTarget
from selfsight.report.sheet import as_picture
from selfsight.train.precision import pick_device, pick_precision, prepare

MOST = 5_000  # images of the map, and of a run without a test split
K, SHOWN = 20, 8  # neighbours that vote; neighbours that are shown
FOUND = 200  # neighbours that are looked for: as many as the protocol, so that ties fall alike


@dataclass(frozen=True)
class Seen:
    """The M images that a page shows and the N images that their neighbours are among.

    Attributes:
        split: "test", or "training" where both are the same images of the training split.
        why: why it is not the test split; "" if it is.
        total: how many images the split has, of which `images` are all or some.
        images, bank: of them.
        features: (M, D) of the images.
        place, similarity: (M, n) the nearest in the bank, nearest first, and their cosine
            similarity; without the image itself where both are the same.
        predicted: (M,) int64, the classes that kNN with k=20 gives the images; None without labels.
        overlap: what the splits share, as in results.json.
        size, resize: what the encoder sees of an image.
        data: the keys of the data that were opened.
    """

    split: str
    why: str
    total: int
    images: Images
    bank: Images
    features: Tensor
    place: Tensor
    similarity: Tensor
    predicted: Tensor | None
    overlap: dict[str, Any]
    size: ImageSize
    resize: Resize
    data: dict[str, Any]

    @property
    def labels(self) -> np.ndarray | None:
        """(M,) int64 the classes of the images."""
        return None if self.images.labels is None else self.images.labels.cpu().numpy()

    @property
    def right(self) -> np.ndarray | None:
        """(M,) bool, which images kNN gives their class."""
        return None if self.predicted is None else self.predicted.numpy() == self.labels

    @property
    def classes(self) -> list[str]:
        return self.images.classes or []

    def sample(self) -> np.ndarray:
        """The rows of the images of the map, in order: all, or MOST that are drawn by seed 0."""
        return _drawn(len(self.images), MOST)

    def pictures(self, images: Images, rows: np.ndarray, side: int) -> Iterator[np.ndarray]:
        """(h, w, 3) uint8 of some images as the encoder sees them, the longer side `side`."""
        height, width = sides(self.size)
        scale = side / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        for batch in plain_views(images, size, rows, self.resize):
            yield from (as_picture(x.cpu()) for x in batch)

    def names(self, images: Images, rows: np.ndarray) -> list[str]:
        """The names of some images, without the folder that all of them are in."""
        found = [images.source.name(int(i)) for i in rows]
        levels = zip_longest(*(name.split("/")[:-1] for name in found))
        shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
        return ["/".join(name.split("/")[shared:]) for name in found]


def _drawn(count: int, most: int) -> np.ndarray:
    rows = np.arange(min(most, count))
    return np.sort(randomness.shuffled(rows, count, randomness.SUBSET)) if count > most else rows


def look(target: EvaluationTarget, records: list[dict[str, Any]], overrides: list[str]) -> Seen:
    """The test split as the protocol `knn` sees it; without labels or a test split the training
    images.

    Args:
        records: results of this encoder; the newest of knn says on which data it was measured.
    Raises: UserError if neither can be read; it says why not the first.
    """
    target = _as_measured(target, records)
    try:
        return _look_at_test(target, overrides)
    except UserError as error:
        reason = str(error).splitlines()[0]
        try:
            return _look_at_training(target, overrides, reason)
        except UserError:
            raise UserError(reason) from None


def _as_measured(target: EvaluationTarget, records: list[dict[str, Any]]) -> EvaluationTarget:
    """The target with the images that knn was measured on, where they are not those of the run, and
    resized as there."""
    found = [record for record in records if record.get("kind", record["protocol"]) == "knn"]
    if not found:
        return target
    resize = (found[-1].get("settings") or {}).get("resize")
    if resize is not None:
        target = replace(target, base={**target.base, "resize": resize})
    data = {k: v for k, v in found[-1]["data"].items() if k not in ("train", "test")}
    described = target.encoder.description["data"]
    if all(described.get(k) == v for k, v in data.items() if k not in LOADING_KEYS):
        return target
    return replace(target, base={**target.base, "data": data})


def _look_at_test(target: EvaluationTarget, overrides: list[str]) -> Seen:
    keys = ["allow_overlap=true", *overrides]  # a page is made anyway, and says what they share
    with open_features(target, keys) as (context, features):
        train, test = context.splits.train, context.splits.test
        nearest = min(FOUND, len(train))
        similarity, place = neighbours(features.train, features.test, nearest, context.device)
        found = vote(similarity, place, train.labels, (K,))[K]
        return Seen(
            "test",
            "",
            len(test),
            test,
            train,
            features.test,
            place[:, :SHOWN].cpu(),
            similarity[:, :SHOWN].cpu(),
            found,
            context.splits.overlap,
            context.size,
            context.resize,
            context.config.data.model_dump(mode="json"),
        )


def _look_at_training(target: EvaluationTarget, overrides: list[str], why: str) -> Seen:
    config = compose_cached(KnnConfig, target.base, overrides)
    with _device(config.device) as device:
        images, total, data = _training_images(config, target, device)
        size = config.image_size or target.encoder.image_size
        resize = config.resize or target.encoder.resize
        network = target.encoder.build().to(device=device, memory_format=torch.channels_last)
        amp = pick_precision(config.precision, device) == "bf16"
        how = {"amp": amp, "resize": resize}
        features = extract(network, images, size, data.normalization, **how).cpu()
    if len(images) < 2:
        raise UserError("there is a single image")
    similarity, place = neighbours(features, features, min(K + 1, len(images)))
    similarity, place = _without_itself(similarity, place)
    labels = images.labels
    return Seen(
        "training",
        why,
        total,
        images,
        images,
        features,
        place[:, :SHOWN],
        similarity[:, :SHOWN],
        None if labels is None else vote(similarity, place, labels, (K,))[K],
        {},
        size,
        resize,
        data.model_dump(mode="json"),
    )


@contextmanager
def _device(name: str) -> Iterator[torch.device]:
    with agreement.joined(pick_device(name)) as device:
        prepare(device)
        yield device


def _training_images(
    config: KnnConfig, target: EvaluationTarget, device: torch.device
) -> tuple[Images, int, Any]:
    """At most MOST images of the training split, of how many, and the keys that they were read by;
    a broken one is replaced by the next."""
    source = open_source(config.data, "train", cache_beside(Path(target.folder)))
    data = settled(config.data, source)
    images = Images(source, data, device, BadImages(None, len(source), 1.0), lazy=True)
    return images.part(_drawn(len(images), MOST)), len(images), data


def _without_itself(similarity: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """(M, n) -> (M, n - 1): each row without its own image, or without the last where equal
    images come before it."""
    own = place == torch.arange(len(place))[:, None]
    own[~own.any(1), -1] = True
    shape = len(place), place.shape[1] - 1
    return similarity[~own].reshape(shape), place[~own].reshape(shape)
