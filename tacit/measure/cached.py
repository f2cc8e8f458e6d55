"""Protocols on cached features: `knn` and `linear`."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tacit import distributed
from tacit.data.images import Images
from tacit.evaluate.features import extract, raw_pixels, read_features, scale_of, weights_hash
from tacit.evaluate.knn import knn_accuracy
from tacit.evaluate.linear import linear_probe
from tacit.measure.config import KnnConfig, LinearConfig, compose_cached
from tacit.measure.job import Job, job
from tacit.measure.results import VERSIONS, Result
from tacit.measure.splits import labelled, said, write_subset
from tacit.measure.subject import open_subject

PIXELS = 2**31  # bytes: raw pixels are compared if they need no more than this
Where = str | Path
Metrics = dict[str, float]


@dataclass(frozen=True)
class _Features:
    """Of one thing that is evaluated: the encoder, the untrained one, or the pixels."""

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

    def measure(x: _Features, y: Tensor, y_test: Tensor, work: Job) -> Metrics:
        how = {"ks": (20, 200), "temperature": 0.07, "device": work.device}
        accuracy = knn_accuracy(x.train, y, x.test, y_test, **how)
        return {f"k{k}": value for k, value in accuracy.items()}

    return _evaluate("knn", KnnConfig, where, overrides, folder, measure)


def linear(
    where: Where, overrides: list[str] | None = None, folder: str | None = None
) -> list[Result]:
    """Logistic regression on cached features; arguments and comparisons as in `knn`.

    Protocol: L2 penalty chosen on a fifth of the training split, the test split used once: top-1
        and top-5. Then with 1 and 5 labels per class: mean and standard deviation over 10 draws.
    With fraction, shots or images: the same on these labels alone.
    """

    def measure(x: _Features, y: Tensor, y_test: Tensor, work: Job) -> Metrics:
        how = {"shots": ()} if work.config.which() else {}
        result = linear_probe(x.train, y, x.test, y_test, work.config.seed, work.device, **how)
        metrics = {"top1": result.top1, "top5": result.top5, "chosen_c": result.strength}
        if result.validation:
            metrics["validation_top1"] = result.validation[result.strength]
        for shots, (mean, deviation) in result.few.items():
            metrics[f"shots{shots}"] = mean
            metrics[f"shots{shots}_std"] = deviation
        return metrics

    return _evaluate("linear", LinearConfig, where, overrides, folder, measure)


def _evaluate(
    protocol: str,
    cls: type[KnnConfig],
    where: Where,
    overrides: list[str] | None,
    folder: str | None,
    measure: Callable[..., Metrics],
) -> list[Result]:
    subject = open_subject(where, overrides or [], folder)
    config = compose_cached(cls, subject.base, overrides or [])
    results = []
    with job(subject, config) as work:
        train, test, settings = work.splits.train, work.splits.test, {}
        rows = None
        if isinstance(config, LinearConfig) and config.which():
            subset = labelled(config, train, config.seed)
            place = subject.folder / "subsets" / subset.sha256[:8]
            write_subset(config, subset, train, config.seed, place)
            rows, settings = torch.from_numpy(subset.rows), said(config, subset)
        for x in _compared(work):
            began = time.perf_counter()
            metrics: Metrics = {}
            if distributed.rank() == 0:
                y = train.labels if rows is None else train.labels[rows]
                x = x if rows is None else replace(x, train=x.train[rows])
                metrics = measure(x, y, test.labels, work)
            metrics = distributed.share(metrics)
            cost = {"features_seconds": x.seconds, "seconds": time.perf_counter() - began}
            record = (x.name, metrics, settings, cost, x.weights_sha256)
            results.append(work.result(protocol, protocol, *record))
        return work.keep(results)


def _compared(work: Job) -> Iterator[_Features]:
    """The encoder, the same network as it was before its first step, and the raw pixels."""
    yield _read(work, "encoder", work.subject.encoder.build())
    if work.config.untrained:
        yield _read(work, "untrained", work.subject.untrained.build())
    train, test = work.splits.train, work.splits.test
    size = 4 * 3 * work.size**2 * (len(train) + len(test))
    if work.config.pixels and size <= PIXELS:
        began = time.perf_counter()
        a, b = (raw_pixels(images, work.size) for images in (train, test))
        yield _Features("pixels", a, b, time.perf_counter() - began, None)


def _read(work: Job, name: str, network: nn.Module) -> _Features:
    """Features of both splits, from the disk if the same network has read the same images."""
    network.to(device=work.device, memory_format=torch.channels_last)
    sha, began = weights_hash(network), time.perf_counter()
    data = work.config.data
    how = (work.size, data.mean, data.std)
    # one scale for both splits, or the test features would be standardised wrongly
    scale = distributed.share(scale_of(network, work.splits.train, *how, amp=work.amp))
    both = [
        _cached(work, network, sha, images, digest, scale)
        for images, digest in zip(
            (work.splits.train, work.splits.test), work.splits.digests, strict=True
        )
    ]
    return _Features(name, *both, time.perf_counter() - began, sha)


def _cached(
    work: Job, network: nn.Module, sha: str, images: Images, digest: str, scale: float
) -> Tensor:
    data = work.config.data
    what = [sha, digest, work.size, data.mean, data.std, work.amp, scale, VERSIONS["knn"]]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    file = work.subject.folder / "features" / f"{key}.npy"
    if distributed.share(file.is_file()):
        return read_features(file)
    how = {"amp": work.amp, "file": file, "shared": True, "scale": scale}
    return extract(network, images, work.size, data.mean, data.std, **how)
