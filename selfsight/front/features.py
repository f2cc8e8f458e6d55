"""Evaluations of features that are given."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight import __version__
from selfsight.data.labels import as_classes
from selfsight.errors import UserError
from selfsight.evaluate.protocols import Result
from selfsight.evaluate.protocols.config import LinearConfig, compose_cached
from selfsight.evaluate.protocols.frozen_features import PROTOCOLS
from selfsight.evaluate.protocols.results import VERSIONS, store
from selfsight.evaluate.protocols.splits import subset_record
from selfsight.evaluate.subsets import draw
from selfsight.front.pairs import numbers
from selfsight.train.precision import pick_device


def measure_features(
    protocol: str, train: Any, test: Any, overrides: list[str], folder: str | None
) -> Result:
    """The record of features that are given."""
    cls, measure = PROTOCOLS[protocol]
    config = compose_cached(cls, {}, overrides)
    (x, names), (x_test, names_test) = _features("train", train), _features("test", test)
    if x.shape[1] != x_test.shape[1]:
        raise UserError(f"features of width {x.shape[1]} (train) and {x_test.shape[1]} (test)")
    classes, y = as_classes(names, len(x), "train")
    place = {name: number for number, name in enumerate(classes)}
    others, y_test = as_classes(names_test, len(x_test), "test")
    unknown = [name for name in others if name not in place]
    if unknown:
        raise UserError(f"test: class '{unknown[0]}' is not among those of train")
    y_test = np.array([place[name] for name in others])[y_test]
    settings = {}
    if isinstance(config, LinearConfig) and config.which():
        if config.images is not None:
            raise UserError(f"images={config.images}: features have no names; give fraction=")
        subset = draw(y, config.seed, config.fraction, config.shots)
        settings = subset_record(config, subset)
        x, y = x[torch.from_numpy(subset.rows)], y[subset.rows]
    began, labels = time.perf_counter(), (torch.from_numpy(y), torch.from_numpy(y_test))
    device = pick_device(config.device)
    metrics, _ = measure(x, labels[0], x_test, labels[1], config, device)
    cost = {"seconds": round(time.perf_counter() - began, 3)}
    counts = {"train": len(x), "test": len(x_test)}
    version = VERSIONS[protocol]
    made: Any = (config.seed, cost, None, counts, {}, __version__)
    result = Result(protocol, protocol, version, "features", metrics, settings, *made)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        store(Path(folder), [result])
    return result


def _features(name: str, pair: Any) -> tuple[Tensor, Any]:
    """(N, D) float features and N labels. Raises: UserError for anything else."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError(f"{name}: without an encoder, give (features, labels)")
    x = torch.as_tensor(pair[0]).detach()
    if x.ndim != 2 or not x.is_floating_point() or not len(x):
        raise UserError(
            f"{name}: features are (N, D) of a float type, found {x.dtype} {tuple(x.shape)}; "
            f"for images give an encoder, too"
        )
    return x, numbers(pair[1])
