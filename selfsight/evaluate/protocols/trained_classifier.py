"""Protocols that train a classifier by `fit`: `linear-augmented` and `finetune`."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsight import agreement, distributed, randomness
from selfsight import config as layers
from selfsight.data.images import Images
from selfsight.data.labels import hold_out
from selfsight.encoders.artifact import Network, weights_hash
from selfsight.errors import UserError
from selfsight.evaluate.classifiers import Classifier, FineTuned, LinearHeads
from selfsight.evaluate.predict import accuracy
from selfsight.evaluate.protocols.config import TrainedConfig, compose_trained
from selfsight.evaluate.protocols.context import EvaluationContext, open_context
from selfsight.evaluate.protocols.results import Result, with_gain
from selfsight.evaluate.protocols.splits import labelled, subset_record, write_subset
from selfsight.evaluate.protocols.target import open_target
from selfsight.files import are_numbers, read_or_set_aside, sealed, write_json
from selfsight.logging.log import console, say
from selfsight.train.checkpoint import Checkpoints
from selfsight.train.engine import fit
from selfsight.train.folder import DATA, claim, owned
from selfsight.train.loader import make_loader

CLASSIFIERS = {"heads": LinearHeads, "finetuned": FineTuned}


def linear_augmented(
    where: str | Path,
    overrides: list[str] | None = None,
    folder: str | None = None,
    protocol: str = "linear-augmented",
    quiet: bool = False,
) -> list[Result]:
    """A linear classifier on a frozen encoder, trained on augmented views: top-1 and top-5.

    The test split is used once, at the end, by the checkpoint of the last step as it is on disk. Of
    several learning rates (method.lr_factors) the best on a validation part is tested.
    Args:
        where: a finished run's folder, an encoder.safetensors, or a checkpoint of another library.
        overrides: 'key=value' of measure.config.TrainedConfig.
        folder: where results.json goes, and below it evaluations/ (default: the run).
        protocol: a shipped protocol's name or a YAML file.
    Raises: UserError if weights do not fit, if test images are among the training images, or for a
        loss that is not finite; train.signals.Interrupted after SIGTERM or Ctrl-C.
    """
    return _train_and_test("linear-augmented", protocol, where, overrides or [], folder, quiet)


def finetune(
    where: str | Path,
    overrides: list[str] | None = None,
    folder: str | None = None,
    protocol: str = "finetune",
    quiet: bool = False,
) -> list[Result]:
    """The whole network trained as a classifier; arguments as in `linear_augmented`.

    `untrained` is the same network trained from scratch on the same labels.
    """
    return _train_and_test("finetune", protocol, where, overrides or [], folder, quiet)


@dataclass(frozen=True)
class _Labelled:
    """The images that a classifier learns from, and those that choose its rate, if any do."""

    train: Images
    validation: Images | None
    settings: dict[str, Any]


def _train_and_test(
    kind: str,
    protocol: str,
    where: str | Path,
    overrides: list[str],
    folder: str | None,
    quiet: bool,
) -> list[Result]:
    target = open_target(where, overrides, folder)
    config = compose_trained(protocol, kind, target.base, target.encoder.image_size, overrides)
    config = config.model_copy(update={"weights_sha256": target.weights_sha256})
    with open_context(target, config) as context:
        home = _home(context)
        images = _labels(context, home)
        results, right = [], {}
        for name, network in context.networks().items():
            metrics, cost, sha, hits = _train(context, network, images, home / name, quiet)
            if hits is not None:
                right[name] = hits
            settings = {**images.settings, **_changed(protocol, kind, context, overrides)}
            record = (config.protocol, kind, name, metrics, settings, cost, sha)
            results.append(context.result(*record))
        return context.keep(with_gain(results, right, config.seed))


def _home(context: EvaluationContext) -> Path:
    """The folder of this configuration on this data; it holds nothing that other data made."""
    config, place = context.config, context.target.folder / "evaluations"
    text = f"{config.fingerprint()} {context.splits.key}"
    home = place / f"{config.protocol}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    before = place / f"{config.protocol}-{config.fingerprint()}"
    if before.exists() and not home.exists() and distributed.rank() == 0:
        console.print(
            f"'{before}' is of version 0.1.0, which did not record the images and labels that it "
            f"used: the classifier is trained again, in '{home}'",
            soft_wrap=True,
        )
    return home


def _changed(
    protocol: str, kind: str, context: EvaluationContext, overrides: list[str]
) -> dict[str, Any]:
    """The keys of the protocol that were changed for this evaluation."""
    target = context.target
    plain = compose_trained(protocol, kind, target.base, target.encoder.image_size, [])
    skip = ("data.", "fraction", "shots", "images", "weights_sha256")
    before = dict(layers.flatten(plain.identity()))
    changed = {
        key: value
        for key, value in layers.flatten(context.config.identity())
        if value != before.get(key) and not key.startswith(skip)
    }
    return {"changed": changed} if changed else {}


def _labels(context: EvaluationContext, home: Path) -> _Labelled:
    """Draw the labelled images; hold a part of them out if there is a rate to choose."""
    config, train = context.config, context.splits.train
    subset = labelled(config, train, config.seed)
    rows, validation = subset.rows, None
    if isinstance(config.method, LinearHeads.Config) and len(config.method.lr_factors) > 1:
        held = hold_out(train.labels.cpu().numpy()[rows], config.validation, config.seed)
        if not held.any():
            raise UserError(
                f"method.lr_factors={list(config.method.lr_factors)}: one label per class leaves "
                f"none to choose among them; give one factor, or more labels"
            )
        validation, rows = train.part(rows[held]), rows[~held]
    write_subset(config, subset, train, config.seed, home)
    return _Labelled(train.part(rows), validation, subset_record(config, subset))


def _train(
    context: EvaluationContext, network: Network, images: _Labelled, folder: Path, quiet: bool
) -> tuple[dict[str, float], dict[str, float], str, Tensor | None]:
    """Metrics, cost, hash of the network's weights, and (M,) which test images top1 counts; from
    the disk if it was done before, where older versions did not store the last."""
    done = folder / "result.json"
    first = distributed.rank() == 0
    stored = read_or_set_aside(done, _is_result, say) if first else None
    stored = agreement.share(stored)
    if stored is not None:
        right = stored.get("right")
        right = None if right is None else torch.tensor([c == "1" for c in right])
        return stored["metrics"], stored["cost"], stored["weights_sha256"], right
    with owned(folder, context.config):
        agreement.by_first(lambda: _begin(context, folder))
        config = fit_batch_size(context.config, len(images.train))
        loader = make_loader(config, images.train)
        classes = len(images.train.classes)
        if first and not quiet:
            _announce(config, folder, len(images.train), classes)
        before = weights_hash(network.build())
        seconds = fit(
            _classifier(network, config, classes),
            loader,
            config,
            folder,
            context.device,
            quiet=quiet,
        )
        began = time.perf_counter()
        found = test_classifier(context, network, folder, classes, images.validation, before)
        metrics, right = found
        cost = {"train_seconds": seconds, "seconds": time.perf_counter() - began}
        record = {"metrics": metrics, "cost": cost, "weights_sha256": before}
        record["right"] = "".join("01"[int(hit)] for hit in right)
        agreement.by_first(lambda: write_json(done, sealed(record)))
    return metrics, cost, before, right


def _is_result(value: dict[str, Any]) -> bool:
    return all(map(are_numbers, (value.get("metrics"), value.get("cost")))) and isinstance(
        value.get("weights_sha256"), str
    )


def _begin(context: EvaluationContext, folder: Path) -> None:
    """Write what the folder holds before the first step."""
    claim(folder, context.config)
    splits = context.splits
    write_json(folder / DATA, sealed({"key": splits.key, "classes": splits.train.classes}))


def _classifier(network: Network, config: TrainedConfig, classes: int) -> Classifier:
    """The network under new heads, whose weights follow from the seed."""
    backbone = network.build(config.drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, config.seed, 2))
        return CLASSIFIERS[config.method.name](backbone, config.method, classes)


def test_classifier(
    context: EvaluationContext,
    network: Network,
    folder: Path,
    classes: int,
    validation: Images | None,
    before: str,
) -> tuple[dict[str, float], Tensor]:
    """Read the last checkpoint, choose among its heads, and go through the test split once.

    Returns: metrics, and (M,) bool, the images that top1 counts.
    """
    config = context.config
    method = _classifier(network, config, classes)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    step, state = agreement.state_by_first(lambda: checkpoints.load(context.device), context.device)
    method.load_state_dict(state["method"], strict=True)
    if config.kind == "linear-augmented" and weights_hash(method.backbone) != before:
        raise UserError(f"'{folder}': the frozen encoder changed while its classifier was trained")
    method.to(device=context.device, memory_format=torch.channels_last)
    how = (context.size, config.data.normalization, context.amp, context.resize)
    chosen: dict[str, float] = {}
    if validation is not None:
        scores = [right.top1 for right in accuracy(method, validation, *how)]
        best = int(np.argmax(scores))
        factor = config.method.lr_factors[best]
        chosen = {"chosen_lr_factor": factor, "validation_top1": scores[best]}
        method.heads = nn.ModuleList([method.heads[best]])
    (right,) = accuracy(method, context.splits.test, *how)
    return {"top1": right.top1, "top5": right.top5, **chosen, "steps": step}, right.images


def fit_batch_size(config: TrainedConfig, images: int) -> TrainedConfig:
    """The configuration with a batch that so few images can fill."""
    method = config.method
    mixing = isinstance(method, FineTuned.Config) and (method.mixup or method.cutmix)
    unit = distributed.world_size() * config.accumulate * (2 if mixing else 1)
    batch = min(config.batch_size, images) // unit * unit
    if batch < 2:
        raise UserError(
            f"batch_size={config.batch_size}: {images} labelled images are too few for "
            f"{distributed.world_size()} processes x accumulate={config.accumulate}"
        )
    return config.model_copy(update={"batch_size": batch})


def _announce(config: TrainedConfig, folder: Path, images: int, classes: int) -> None:
    console.print(
        f"{config.protocol} of {folder.name} on {images:,} labelled images ({classes} classes), "
        f"{config.epochs} epochs of batch {config.batch_size} -> {folder}",
        soft_wrap=True,
    )
