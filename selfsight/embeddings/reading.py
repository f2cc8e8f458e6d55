"""How the features of all splits get into the parts of a table, by one process or several."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsight import agreement, distributed
from selfsight.batch import ImageSize, sides
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.embeddings.images import EmbedConfig, Split, batches, stamp_of
from selfsight.embeddings.parts import BROKEN, Parts, Writer, folder_beside
from selfsight.encoders.artifact import weights_hash
from selfsight.encoders.dense import LayerFeatures, Layers
from selfsight.encoders.shown import Resize
from selfsight.evaluate.features import (
    batch_size,
    feature_batches,
    finite,
    plain_views,
    prove_frozen,
)
from selfsight.evaluate.protocols.context import check_shape
from selfsight.evaluate.protocols.target import EvaluationTarget
from selfsight.locks import locked
from selfsight.logging.log import Progress
from selfsight.train.folder import package_version
from selfsight.train.precision import pick_precision


@dataclass(frozen=True)
class Job:
    """The encoder and how it sees images.

    Attributes:
        width: of its features; layers: the names of those that are read, or None.
        amp: whether it runs in bf16.
    """

    encoder: nn.Module
    width: int
    layers: list[str] | None
    size: ImageSize
    resize: Resize
    amp: bool
    device: torch.device


def open_job(
    target: EvaluationTarget, config: EmbedConfig, device: torch.device, layers: Layers | None
) -> Job:
    """Build the encoder. Raises: UserError if it does not take these images, or has no such
    layers."""
    check_shape(target, config)
    size = config.image_size or target.encoder.image_size
    encoder, names = target.encoder.build(), None
    width: int = encoder.num_features
    if layers is not None:
        encoder = LayerFeatures(encoder, layers, config.data.channels, sides(size))
        width, names = encoder.num_features, encoder.layers
    encoder = encoder.to(device=device, memory_format=torch.channels_last)
    amp = pick_precision(config.precision, device) == "bf16"
    resize = config.resize or target.encoder.resize
    return Job(encoder, width, names, size, resize, amp, device)


def open_parts(
    output: Path,
    job: Job,
    splits: list[Split],
    about: dict[str, Any],
    stack: contextlib.ExitStack,
) -> Parts:
    """The files of this work, as far as they were written before.

    Args:
        about: of what the features are.
        stack: holds the lock of the first process.
    """
    made_by = [package_version(name) for name in ("torch", "timm")]
    folder = folder_beside(output, [about, made_by, job.device.type])
    step, spans, first = batch_size(job.device, job.size), [], 0
    for split in splits:
        spans.append(batches(len(split.source), step, first))
        first += len(split.source)
    parts = Parts(folder, np.concatenate(spans), job.width)

    def begin() -> None:
        folder.mkdir(exist_ok=True)
        stack.enter_context(locked(folder))
        parts.prepare(stamp_of(splits))

    agreement.by_first(begin)
    return parts


def bad_file(parts: Parts, split: Split) -> Path:
    """The list of the broken images of a split, which all processes share."""
    return parts.folder / BROKEN.format(split.name)


def read_missing(
    job: Job, data: DataConfig, splits: list[Split], parts: Parts, progress: Progress
) -> None:
    """This process's share of the batches that are missing.

    Raises: UserError if the encoder changed meanwhile: then the batches since the last time that it
        was proven unchanged do not count.
    """
    missing = agreement.by_first(parts.missing)
    ranks, rank = distributed.world_size(), distributed.rank()
    mine = missing[len(missing) * rank // ranks : len(missing) * (rank + 1) // ranks]
    lengths = np.diff(parts.spans, axis=1)[:, 0]
    done = parts.rows - int(lengths[missing].sum())
    total = done + int(lengths[mine].sum())
    what = "features of images" + (f", process 1 of {ranks}" if ranks > 1 else "")
    before, first = weights_hash(job.encoder), 0
    with Writer(parts, lambda: prove_frozen(job.encoder, before)) as writer:
        for split in splits:
            starts, end = parts.spans[mine, 0], first + len(split.source)
            numbers = mine[(first <= starts) & (starts < end)]
            if len(numbers):
                images = split.opened(data, job.device, bad_file(parts, split))
                for count in _read(job, images, parts, numbers, first, writer):
                    done += count
                    progress.images(what, done, total)
            first = end


def _read(
    job: Job, images: Images, parts: Parts, numbers: np.ndarray, first: int, writer: Writer
) -> Iterator[int]:
    """Read these batches of a split, and write them; yields the number of images of each.

    Args:
        first: the row of the split's first image.
    """
    rows = np.concatenate([np.arange(*span) for span in parts.spans[numbers] - first])
    views = plain_views(images, job.size, rows, job.resize)
    normalization = images.config.normalization
    found = feature_batches(job.encoder, views, normalization, job.amp)
    pieces = finite(_placed(found), rows)
    for number, (place, part) in zip(numbers.tolist(), pieces, strict=True):
        features = part.cpu().numpy()
        # In the place of a broken image stands the next good one: the row is left out.
        broken = np.isin(rows[place : place + len(features)], list(images.broken()))
        if broken.any():
            features = np.where(broken[:, None], np.float32("nan"), features)
        writer.write(number, features)
        yield len(features)


def _placed(batches: Iterator[Tensor]) -> Iterator[tuple[int, Tensor]]:
    place = 0
    for batch in batches:
        yield place, batch
        place += len(batch)
