"""Whole evaluations of a run: kNN and linear probe, beside what an untrained encoder scores."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tacit import config as layers
from tacit.data.images import Images
from tacit.data.sources import DataConfig, open_source, with_source
from tacit.errors import UserError
from tacit.evaluate.encoder import Encoder, load_encoder
from tacit.evaluate.features import extract, raw_pixels, weights_hash
from tacit.evaluate.knn import knn_accuracy
from tacit.evaluate.linear import linear_probe
from tacit.run import build_method
from tacit.run_config import RunConfig, read_run_config
from tacit.train.files import write_json
from tacit.train.log import read_metrics
from tacit.train.precision import pick_device, pick_precision

VERSION = 1  # of the protocols; a change that moves numbers raises it


@dataclass(frozen=True)
class Result:
    """One record of results.json.

    Attributes:
        protocol: knn or linear; evaluated: encoder, untrained or pixels.
        metrics: name -> value, accuracies in [0, 1].
    """

    protocol: str
    version: int
    evaluated: str
    metrics: dict[str, float]
    seed: int
    cost: dict[str, float]
    weights_sha256: str | None
    data: dict[str, Any]


@dataclass(frozen=True)
class _Features:
    """Of one thing that is evaluated: the encoder, the untrained one, or the pixels."""

    name: str
    train: Tensor
    test: Tensor
    seconds: float
    weights_sha256: str | None


def knn(run: str | Path, overrides: list[str] | None = None) -> list[Result]:
    """kNN accuracy on the test split of the run's encoder, of an untrained one and of raw pixels.

    Protocol: cosine, k = 20 and 200, votes weighted with exp(cosine / 0.07) (arXiv 1805.01978).
    Args:
        run: a finished run's folder.
        overrides: 'data.key=value' to evaluate on other data, 'device=...'.
    """

    def measure(x: _Features, y: Tensor, y_test: Tensor, seed: int) -> dict[str, float]:
        accuracy = knn_accuracy(x.train, y, x.test, y_test, ks=(20, 200), temperature=0.07)
        return {f"k{k}": value for k, value in accuracy.items()}

    return _evaluate("knn", Path(run), overrides, measure)


def linear(run: str | Path, overrides: list[str] | None = None) -> list[Result]:
    """Logistic regression on cached features; arguments and comparisons as in `knn`.

    Protocol: L2 penalty chosen on a fifth of the training split, the test split used once: top-1
        and top-5.
    Then with 1 and 5 labels per class: mean and standard deviation over 10 drawn subsets.
    """

    def measure(x: _Features, y: Tensor, y_test: Tensor, seed: int) -> dict[str, float]:
        arrays = [t.cpu().numpy() for t in (x.train, y, x.test, y_test)]
        result = linear_probe(*arrays, seed)
        metrics = {"top1": result.top1, "top5": result.top5, "chosen_c": result.strength}
        for shots, (mean, deviation) in result.few.items():
            metrics[f"shots{shots}"] = mean
            metrics[f"shots{shots}_std"] = deviation
        return metrics

    return _evaluate("linear", Path(run), overrides, measure)


def _evaluate(
    protocol: str,
    folder: Path,
    overrides: list[str] | None,
    measure: Callable[..., dict[str, float]],
) -> list[Result]:
    config = _overridden(read_run_config(folder), overrides or [])
    encoder, device = load_encoder(folder), pick_device(config.device)
    train, test = _labelled_splits(config.data, device)
    results = []
    for x in _compared(encoder, config, train, test, device):
        began = time.perf_counter()
        metrics = measure(x, train.labels, test.labels, config.seed)
        cost = {"features_seconds": x.seconds, "seconds": time.perf_counter() - began}
        if x.name == "encoder":
            cost["pretrain_seconds"] = read_metrics(folder / "metrics.jsonl")[-1]["seconds"]
        described = {**config.data.model_dump(mode="json"), "train": len(train), "test": len(test)}
        results.append(
            Result(
                protocol,
                VERSION,
                x.name,
                metrics,
                config.seed,
                {name: round(value, 3) for name, value in cost.items()},
                x.weights_sha256,
                described,
            )
        )
    _store(folder, results)
    return results


def _overridden(config: RunConfig, overrides: list[str]) -> RunConfig:
    """The run's configuration with other data or another device; no other key can change."""
    tree = config.tree()
    for layer in layers.parse_overrides(overrides):
        for key, _ in layers.flatten(layer):
            if key != "device" and not key.startswith("data."):
                raise UserError(
                    f"'{key}' cannot change in an evaluation; only data.* and device can"
                )
        tree = layers.merge(tree, {**layer, "data": with_source(layer.get("data", {}))})
    return layers.validate(RunConfig, tree)


def _labelled_splits(data: DataConfig, device: torch.device) -> tuple[Images, Images]:
    where = f"data.path={data.path}" if data.path else f"data.source={data.source}"
    train, test = open_source(data, "train"), open_source(data, "test")
    if train is None or train.classes is None:
        raise UserError(
            f"{where}: has no labels to measure against; name a labelled set with data.path=..."
        )
    if test is None or test.classes is None:
        raise UserError(f"{where}: its test split has no labels")
    if train.classes != test.classes:
        raise UserError(
            f"{where}: train and test split have different classes "
            f"({len(train.classes)} and {len(test.classes)})"
        )
    return Images(train, data, device), Images(test, data, device)


def _compared(
    encoder: Encoder, config: RunConfig, train: Images, test: Images, device: torch.device
) -> list[_Features]:
    """The encoder, the same network as it was before its first step, and the raw pixels."""
    size, mean, std = (encoder.description[key] for key in ("image_size", "mean", "std"))
    amp = pick_precision(config.precision, device) == "bf16"
    evaluations = []
    untrained = build_method(config).backbone
    for name, network in (("encoder", encoder.backbone), ("untrained", untrained)):
        network.to(device=device, memory_format=torch.channels_last)
        began = time.perf_counter()
        a, b = (extract(network, images, size, mean, std, amp=amp) for images in (train, test))
        seconds = time.perf_counter() - began
        evaluations.append(_Features(name, a, b, seconds, weights_hash(network)))
    began = time.perf_counter()
    a, b = raw_pixels(train, size), raw_pixels(test, size)
    evaluations.append(_Features("pixels", a, b, time.perf_counter() - began, None))
    return evaluations


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's results.json."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _store(folder: Path, results: list[Result]) -> None:
    """Add records; one of the same protocol, seed, data and thing evaluated is replaced."""

    def what(record: dict[str, Any]) -> str:
        keys = ("protocol", "version", "evaluated", "seed", "data", "weights_sha256")
        return json.dumps([record[k] for k in keys], sort_keys=True)

    new = [vars(result) for result in results]
    replaced = {what(record) for record in new}
    kept = [record for record in read_results(folder) if what(record) not in replaced]
    write_json(folder / "results.json", kept + new)
