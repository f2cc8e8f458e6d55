"""Evaluations from Python: of runs, of modules, of features."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from selfsight import own
from selfsight.batch import ImageSize, sides
from selfsight.data.images import SMALL
from selfsight.data.sources.dataset import Dataset
from selfsight.encoders.artifact import Network, weights_hash
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.encoder import Encoder as FrozenEncoder
from selfsight.errors import UserError
from selfsight.evaluate import protocols
from selfsight.evaluate.protocols import Result
from selfsight.evaluate.protocols.config import compose_cached
from selfsight.evaluate.protocols.frozen_features import PROTOCOLS, measure_target
from selfsight.evaluate.protocols.target import EvaluationTarget, open_target
from selfsight.front.features import measure_features
from selfsight.front.keys import IMAGES, read_keys
from selfsight.front.pairs import dataset_of
from selfsight.front.run import Run

Encoder = str | os.PathLike[str] | Run | nn.Module | None


def knn(
    encoder: Encoder = None,
    overrides: list[str] | None = None,
    folder: str | None = None,
    *,
    train: Any = None,
    test: Any = None,
    backbone: Any = None,
    data: Any = None,
    **keys: Any,
) -> list[Result]:
    """kNN accuracy on test images: cosine, k = 20 and 200, votes weighted with exp(cosine / 0.07).

    Source: Wu et al. (arXiv 1805.01978).
    Args:
        encoder: a run, an encoder.safetensors, a checkpoint of another library, a module
            (B, C, h, w) -> (B, D), or None for features that are given.
        overrides: 'key=value', as on the command line; or as keywords.
        folder: where results.json goes (default: the run; of a module or features nowhere).
        train, test: (images, labels) or a data set of such pairs; without an encoder (features,
            labels), features (N, D). Images: uint8 (N, H, W, C), paths, or PIL images. Default: the
            data of the run.
        backbone: of a run whose encoder is a module or function of the caller's: that one.
        data: a path, keys below `data`, or a data set, as in `selfsight.pretrain`.
        keys: keys of the evaluation: `image_size=96`, `device="cpu"`, `allow_overlap=True`.
    Returns: a record for the encoder, for the same network before its first step (of a run), and
        for the raw pixels.
    Raises: UserError if weights do not fit, or if test images are among the training images.

    >>> x, y = torch.randn(100, 8), torch.arange(100) % 2
    >>> x[:, 0] += 40 * y - 20
    >>> knn(train=(x[:60], y[:60]), test=(x[60:], y[60:]))[0].metrics["k20"]
    1.0
    """
    return _measure("knn", encoder, overrides, folder, train, test, backbone, data, keys)


def linear(
    encoder: Encoder = None,
    overrides: list[str] | None = None,
    folder: str | None = None,
    *,
    train: Any = None,
    test: Any = None,
    backbone: Any = None,
    data: Any = None,
    **keys: Any,
) -> list[Result]:
    """Logistic regression on frozen features; arguments as of `knn`.

    The L2 penalty is chosen on a fifth of the training split; top-1 and top-5 on the test split,
    then with 1 and 5 labels per class: mean and standard deviation over 10 draws.

    >>> y = torch.arange(100) % 2
    >>> x = y[:, None] + 0.1 * torch.randn(100, 8)
    >>> linear(train=(x[:60], y[:60]), test=(x[60:], y[60:]))[0].metrics["top1"]
    1.0
    """
    return _measure("linear", encoder, overrides, folder, train, test, backbone, data, keys)


def linear_augmented(
    encoder: str | os.PathLike[str] | Run,
    overrides: list[str] | None = None,
    folder: str | None = None,
    protocol: str = "linear-augmented",
    quiet: bool = False,
    *,
    backbone: Any = None,
    data: Any = None,
    **keys: Any,
) -> list[Result]:
    """A linear classifier on a frozen encoder, trained on augmented views: top-1 and top-5.

    Args: as of `selfsight.knn`; protocol: a shipped protocol's name or a YAML file.
    Raises: UserError; Interrupted after SIGTERM or Ctrl-C: the same call continues.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> [r.evaluated for r in linear_augmented(run, max_steps=1, quiet=True)]
    ['encoder', 'untrained']
    """
    function = protocols.linear_augmented
    return _train(function, encoder, overrides, folder, protocol, quiet, backbone, data, keys)


def finetune(
    encoder: str | os.PathLike[str] | Run,
    overrides: list[str] | None = None,
    folder: str | None = None,
    protocol: str = "finetune",
    quiet: bool = False,
    *,
    backbone: Any = None,
    data: Any = None,
    **keys: Any,
) -> list[Result]:
    """The whole network trained as a classifier, beside the same network from scratch.

    Args and raises: as of `linear_augmented`.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> [r.evaluated for r in finetune(run, fraction=0.1, max_steps=1, quiet=True)]
    ['encoder', 'untrained']
    """
    function = protocols.finetune
    return _train(function, encoder, overrides, folder, protocol, quiet, backbone, data, keys)


def _train(
    function: Callable[..., list[Result]],
    encoder: str | os.PathLike[str] | Run,
    overrides: list[str] | None,
    folder: str | None,
    protocol: str,
    quiet: bool,
    backbone: Any,
    data: Any,
    keys: dict[str, Any],
) -> list[Result]:
    more, parts = read_keys(keys, None, backbone, data)
    parts += encoder.parts if isinstance(encoder, Run) else ()
    overrides = [*(overrides or []), *more]
    with own.given(parts), own.named_in(overrides):
        return function(os.fspath(encoder), overrides, folder, protocol, quiet)


def _measure(
    protocol: str,
    encoder: Encoder,
    overrides: list[str] | None,
    folder: str | None,
    train: Any,
    test: Any,
    backbone: Any,
    data: Any,
    keys: dict[str, Any],
) -> list[Result]:
    more, parts = read_keys(keys, None, backbone, data)
    overrides = [*(overrides or []), *more]
    if (train is None) != (test is None):
        raise UserError("train and test: give both, or neither")
    if encoder is None:
        if train is None:
            raise UserError(f"{protocol}: give an encoder, or features as train= and test=")
        return [measure_features(protocol, train, test, overrides, folder)]
    if train is not None:
        pair = {"train": dataset_of("train", train), "test": dataset_of("test", test)}
        parts.append(own.Part("data", IMAGES, pair))
        overrides.insert(0, f'data={{"source": "{IMAGES}", "path": null, "test_path": null}}')
    if isinstance(encoder, nn.Module):
        return _of_module(protocol, encoder, overrides, folder, parts)
    parts += encoder.parts if isinstance(encoder, Run) else ()
    with own.given(parts), own.named_in(overrides):
        target = open_target(os.fspath(encoder), overrides, folder)
        return measure_target(protocol, target, overrides)


def _of_module(
    protocol: str,
    module: nn.Module,
    overrides: list[str],
    folder: str | None,
    parts: list[own.Part],
) -> list[Result]:
    if folder is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{protocol}: several processes measure a module; give folder=, for all")
    about: dict[str, Any] = {}
    if isinstance(module, FrozenEncoder):
        about, module = module.description, module.backbone
    part = own.part_of("backbone", module)
    with (
        own.given([*parts, part]),
        own.named_in(overrides),
        tempfile.TemporaryDirectory() as temporary,
    ):
        base: dict[str, Any] = {"untrained": False}
        if about:
            base["data"] = {key: about[key] for key in ("channels", "mean", "std") if key in about}
            how = {key: about["data"].get(key) for key in ("bits", "range")}
            base["data"] |= {key: value for key, value in how.items() if value is not None}
        config = compose_cached(PROTOCOLS[protocol][0], base, overrides)
        if config.untrained:
            raise UserError("untrained=true: only a run knows its encoder before the first step")
        size = config.image_size or about.get("image_size") or _size(module, parts)
        channels = config.data.channels
        named = BackboneConfig(name=part.name)
        built = build_backbone(named, size, config.seed, channels=channels)
        description = {
            "backbone": {"name": part.name},
            "num_features": built.num_features,
            "backbone_features": built.num_features,
            "image_size": size,
            "resize": about.get("resize", "crop"),
            "channels": channels,
            "seed": config.seed,
            "data": {},
        }
        network = Network(description, module.state_dict(), part.name)
        where = Path(temporary if folder is None else folder)
        settings = {"encoder": part.name, "image_size": size}
        target = EvaluationTarget(
            network, network, weights_hash(module), base, where, settings=settings
        )
        return measure_target(protocol, target, overrides)


def _size(module: nn.Module, parts: list[own.Part]) -> ImageSize:
    """The size in pixels of the images that a module is shown: of a transformer its own, of small
    images theirs, else 224."""
    own_size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if own_size is not None:
        height, width = map(int, sides(own_size))
        return height if height == width else (height, width)
    images = next((p.value["train"] for p in parts if p.name == IMAGES), None)
    if images is not None:
        image = Dataset(images, False, "train").read(0)
        if isinstance(image, np.ndarray) and max(image.shape[:2]) <= SMALL:
            return int(max(image.shape[:2]))
    return 224
