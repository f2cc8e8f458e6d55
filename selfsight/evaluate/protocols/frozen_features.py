"""Protocols on cached features: `knn` and `linear`."""

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from selfsight import agreement, distributed
from selfsight.batch import sides
from selfsight.data.images import Images
from selfsight.data.source import cache_beside
from selfsight.encoders.artifact import Network
from selfsight.evaluate.features import extract, raw_pixels, read_features, scale_of
from selfsight.evaluate.knn import knn_right
from selfsight.evaluate.protocols.config import KnnConfig, LinearConfig, compose_cached
from selfsight.evaluate.protocols.context import EvaluationContext, open_context
from selfsight.evaluate.protocols.results import VERSIONS, Result, with_gain
from selfsight.evaluate.protocols.splits import labelled, subset_record, write_subset
from selfsight.evaluate.protocols.target import EvaluationTarget, open_target
from selfsight.files import (
    is_intact,
    read_or_set_aside,
    seal,
    sealed,
    write_atomically,
    write_json,
)
from selfsight.logging.log import console, say
from selfsight.train.folder import package_version
from selfsight.train.precision import physical_memory

BYTES_OF_PROBE = 40  # times the square of the number of features, see linear_probe
PIXELS = 2**31  # bytes: raw pixels are compared if they need no more than this
Where = str | Path
Metrics = dict[str, float]


@dataclass(frozen=True)
class SplitFeatures:
    """The features of both splits of one row of the table: encoder, untrained, or pixels."""

    name: str
    train: Tensor
    test: Tensor
    seconds: float
    weights_sha256: str | None


def knn(
    where: Where, overrides: list[str] | None = None, folder: str | None = None
) -> list[Result]:
    """kNN accuracy on the test split of an encoder, of an untrained one and of raw pixels.

    Protocol: cosine, k = 20 and 200, votes weighted with exp(cosine / 0.07) (arXiv 1805.01978).
    Args:
        where: a finished run's folder, an encoder.safetensors, or a checkpoint of another library.
        overrides: 'key=value' of measure.config.KnnConfig: data.*, device, allow_overlap, ...
        folder: where results.json goes (default: the run).
    Raises: UserError if weights do not fit, or if test images are among the training images.
    """

    return measure_target("knn", open_target(where, overrides or [], folder), overrides or [])


def linear(
    where: Where, overrides: list[str] | None = None, folder: str | None = None
) -> list[Result]:
    """Logistic regression on cached features; arguments and comparisons as in `knn`.

    Protocol: L2 penalty chosen on a fifth of the training split, the test split used once: top-1
        and top-5. Then with 1 and 5 labels per class: mean and standard deviation over 10 draws.
    With fraction, shots or images: the same on these labels alone.
    """
    return measure_target("linear", open_target(where, overrides or [], folder), overrides or [])


class Measured(NamedTuple):
    """Metrics, and (M,) bool, the test images that the main one counts as right."""

    metrics: Metrics
    right: Tensor


def knn_metrics(
    train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, config: KnnConfig, device: torch.device
) -> Measured:
    """The protocol `knn` on features (N, D) and (M, D) with labels (N,) and (M,) int64."""
    how = {"ks": (20, 200), "temperature": 0.07, "device": device}
    right = knn_right(train, y, test, y_test, **how)
    return Measured({f"k{k}": int(x.sum()) / len(x) for k, x in right.items()}, right[20])


def linear_metrics(
    train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, config: KnnConfig, device: torch.device
) -> Measured:
    """The protocol `linear`; arguments as in `knn_metrics`."""
    from selfsight.evaluate.linear import linear_probe  # scipy takes 0.8 s: kNN need not wait

    how = {"shots": ()} if config.which() else {}
    result = linear_probe(train, y, test, y_test, config.seed, device, **how)
    metrics = {"top1": result.top1, "top5": result.top5, "chosen_c": result.strength}
    if result.validation:
        metrics["validation_top1"] = result.validation[result.strength]
    for shots, (mean, deviation) in result.few.items():
        metrics[f"shots{shots}"] = mean
        metrics[f"shots{shots}_std"] = deviation
    return Measured(metrics, result.right)


PROTOCOLS = {"knn": (KnnConfig, knn_metrics), "linear": (LinearConfig, linear_metrics)}


def measure_target(protocol: str, target: EvaluationTarget, overrides: list[str]) -> list[Result]:
    """Measure an encoder by `knn` or `linear`, and store the records."""
    cls, measure = PROTOCOLS[protocol]
    config = compose_cached(cls, target.base, overrides)
    results, right = [], {}
    with open_context(target, config) as context:
        train, test, settings = context.splits.train, context.splits.test, {}
        rows = None
        if isinstance(config, LinearConfig) and config.which():
            subset = labelled(config, train, config.seed)
            place = target.folder / "subsets" / subset.sha256[:8]
            write_subset(config, subset, train, config.seed, place)
            rows, settings = torch.from_numpy(subset.rows), subset_record(config, subset)
        for x in _compared(context):
            began = time.perf_counter()
            found = None
            if distributed.rank() == 0:
                y = train.labels if rows is None else train.labels[rows]
                x = x if rows is None else replace(x, train=x.train[rows])
                found = measure(x.train, y, x.test, test.labels, config, context.device)
            metrics, right[x.name] = agreement.share(found)
            cost = {"features_seconds": x.seconds, "seconds": time.perf_counter() - began}
            record = (x.name, metrics, settings, cost, x.weights_sha256)
            results.append(context.result(protocol, protocol, *record))
        return context.keep(with_gain(results, right, config.seed))


def _compared(context: EvaluationContext) -> Iterator[SplitFeatures]:
    """The encoder, what it started from, the untrained network, and the raw pixels."""
    for name, network in context.networks().items():
        yield features_of(context, name, network)
    train, test = context.splits.train, context.splits.test
    width = context.config.data.channels * math.prod(sides(context.size))
    fits = 4 * width * (len(train) + len(test)) <= PIXELS
    needs, memory = BYTES_OF_PROBE * width**2, physical_memory()
    if isinstance(context.config, LinearConfig) and fits and needs > memory / 2:
        fits = False
        if context.config.pixels and distributed.rank() == 0:
            console.print(
                f"The row 'pixels' is left out: a linear probe of {width:,} features needs "
                f"{needs / 2**30:.0f} GiB of memory, and this machine has {memory / 2**30:.0f}",
                soft_wrap=True,
            )
    if context.config.pixels and agreement.share(fits):
        began = time.perf_counter()
        a, b = (
            _pixels(context, *pair)
            for pair in zip((train, test), context.splits.digests, strict=True)
        )
        yield SplitFeatures("pixels", a, b, time.perf_counter() - began, None)


def _pixels(context: EvaluationContext, images: Images, digest: str) -> Tensor:
    """The raw pixels of a split, from the disk if they were resized to this size before."""
    what = " ".join(map(str, [digest, context.size, images.in_memory, *_unusual(context)]))
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    file = cache_beside(context.target.folder) / f"pixels-{key}.npy"

    def make() -> None:
        if _is_sound(file, images):
            return
        pixels = raw_pixels(images, context.size, context.resize).cpu()
        if images.tensor is None and images.decode(0)[1].dtype == np.uint8:  # resized to bytes
            pixels = pixels.mul_(255).round_().byte()
        write_atomically(file, functools.partial(_save, pixels.numpy()), pixels.nbytes)
        seal(file)

    agreement.by_first(make)
    return read_features(file)


def _is_sound(file: Path, images: Images) -> bool:
    """Whether a file of features is as it was written, and of these images."""
    return is_intact(file) and read_features(file).shape[:1] == (len(images),)


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def features_of(context: EvaluationContext, name: str, network: Network) -> SplitFeatures:
    """Features of both splits, from the disk if the same network has read the same images: then
    the network is not even built."""

    @functools.cache
    def built() -> nn.Module:
        return network.build().to(device=context.device, memory_format=torch.channels_last)

    began, sha = time.perf_counter(), _hash(context, network)
    scale = _scale(context, built, sha)
    both = [
        _cached(context, built, sha, images, digest, scale)
        for images, digest in zip(
            (context.splits.train, context.splits.test), context.splits.digests, strict=True
        )
    ]
    return SplitFeatures(name, *both, time.perf_counter() - began, sha)


def _hash(context: EvaluationContext, network: Network) -> str:
    """The hash of the network's weights; that of initial weights is kept, since they must be built
    for it."""
    if network.tensors is not None:
        return network.weights_sha256()
    keys = ("backbone", "image_size", "seed", "fixed_positions", "head_dim", "channels")
    made_by = [package_version(name) for name in ("selfsight", "torch", "timm")]
    what = [*(network.description.get(key) for key in keys), *made_by]
    return _kept(context, "sha256", what, network.weights_sha256)


def _kept(context: EvaluationContext, name: str, what: list[Any], make: Callable[[], Any]) -> Any:
    """A value that `what` defines: from the disk if it was made before."""
    file = _file(context, what, "json")
    kind = {"sha256": str, "scale": float}[name]

    def fits(stored: dict[str, Any]) -> bool:
        return isinstance(stored.get(name), kind)

    first = distributed.rank() == 0
    stored = agreement.share(read_or_set_aside(file, fits, say) if first else None)
    if stored is not None:
        return stored[name]
    value = agreement.share(make())
    agreement.by_first(lambda: write_json(file, sealed({name: value})))
    return value


def _scale(context: EvaluationContext, built: Callable[[], nn.Module], sha: str) -> float:
    """What stored features are multiplied by: one number for both splits, or the test features
    would be standardised wrongly."""
    data, digest = context.config.data, context.splits.digests[0]
    how = (context.size, data.normalization, context.amp, context.resize)
    return _kept(
        context,
        "scale",
        [sha, digest, context.size, data.mean, data.std, context.amp, *_unusual(context)],
        lambda: scale_of(built(), context.splits.train, *how),
    )


def _unusual(context: EvaluationContext) -> list[Any]:
    """What else defines the pixels that the networks see, where it is not as it always was."""
    channels, resize = context.config.data.channels, context.resize
    return [channels, resize] if (channels, resize) != (3, "crop") else []


def _file(context: EvaluationContext, what: list[Any], ending: str) -> Path:
    """Where the features that these values define are stored."""
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return context.target.folder / "features" / f"{key}.{ending}"


def _cached(
    context: EvaluationContext,
    built: Callable[[], nn.Module],
    sha: str,
    images: Images,
    digest: str,
    scale: float,
) -> Tensor:
    data = context.config.data
    what = [sha, digest, context.size, data.mean, data.std, context.amp, scale, VERSIONS["knn"]]
    file = _file(context, what + _unusual(context), "npy")
    first = distributed.rank() == 0
    if agreement.share(first and _is_sound(file, images)):
        return read_features(file)
    how = {"amp": context.amp, "file": file, "shared": True, "scale": scale}
    how["resize"] = context.resize
    features = extract(built(), images, context.size, data.normalization, **how)
    if first:
        seal(file)
    return features
