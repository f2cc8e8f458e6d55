"""Protocols that train a classifier by `fit`: `linear-augmented` and `finetune`."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tacit import config as layers
from tacit import distributed, randomness
from tacit.data.images import Images
from tacit.errors import UserError
from tacit.evaluate.classify import Classifier, FineTuned, LinearHeads
from tacit.evaluate.encoder import Network
from tacit.evaluate.features import weights_hash
from tacit.evaluate.predict import accuracy
from tacit.evaluate.subsets import hold_out
from tacit.files import locked, write_json
from tacit.measure.config import TrainedConfig, compose_trained
from tacit.measure.job import Job, job
from tacit.measure.results import Result
from tacit.measure.splits import labelled, said, write_subset
from tacit.measure.subject import open_subject
from tacit.run import make_loader
from tacit.run_folder import claim
from tacit.train.checkpoint import Checkpoints
from tacit.train.engine import fit
from tacit.train.log import console

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
    return _evaluate("linear-augmented", protocol, where, overrides or [], folder, quiet)


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
    return _evaluate("finetune", protocol, where, overrides or [], folder, quiet)


@dataclass(frozen=True)
class _Labelled:
    """The images that a classifier learns from, and those that choose its rate, if any do."""

    train: Images
    validation: Images | None
    settings: dict[str, Any]


def _evaluate(
    kind: str,
    protocol: str,
    where: str | Path,
    overrides: list[str],
    folder: str | None,
    quiet: bool,
) -> list[Result]:
    subject = open_subject(where, overrides, folder)
    config = compose_trained(protocol, kind, subject.base, subject.encoder.image_size, overrides)
    config = config.model_copy(update={"weights_sha256": subject.weights_sha256})
    home = subject.folder / "evaluations" / f"{config.protocol}-{config.fingerprint()}"
    with job(subject, config) as work:
        images = _labels(work, home)
        networks = {"encoder": subject.encoder}
        if config.untrained:
            networks["untrained"] = subject.untrained
        results = []
        for name, network in networks.items():
            metrics, cost, sha = _train(work, network, images, home / name, quiet)
            settings = {**images.settings, **_changed(protocol, kind, work, overrides)}
            record = (config.protocol, kind, name, metrics, settings, cost, sha)
            results.append(work.result(*record))
        return work.keep(results)


def _changed(protocol: str, kind: str, work: Job, overrides: list[str]) -> dict[str, Any]:
    """The keys of the protocol that were changed for this evaluation."""
    subject = work.subject
    plain = compose_trained(protocol, kind, subject.base, subject.encoder.image_size, [])
    skip = ("data.", "fraction", "shots", "images", "weights_sha256")
    before = dict(layers.flatten(plain.identity()))
    changed = {
        key: value
        for key, value in layers.flatten(work.config.identity())
        if value != before.get(key) and not key.startswith(skip)
    }
    return {"changed": changed} if changed else {}


def _labels(work: Job, home: Path) -> _Labelled:
    """Draw the labelled images; hold a part of them out if there is a rate to choose."""
    config, train = work.config, work.splits.train
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
    return _Labelled(train.part(rows), validation, said(config, subset))


def _train(
    work: Job, network: Network, images: _Labelled, folder: Path, quiet: bool
) -> tuple[dict[str, float], dict[str, float], str]:
    """Metrics, cost and hash of the network's weights; from the disk if it was done before."""
    done = folder / "result.json"
    if distributed.share(done.is_file()):
        stored = json.loads(done.read_text(encoding="utf-8"))
        return stored["metrics"], stored["cost"], stored["weights_sha256"]
    first = distributed.rank() == 0
    if first:
        claim(folder, work.config)
    distributed.barrier()
    with locked(folder) if first else nullcontext():
        config = fitted(work.config, len(images.train))
        loader = make_loader(config, images.train)
        classes = len(images.train.classes)
        if first and not quiet:
            _announce(config, folder, len(images.train), classes)
        before = weights_hash(network.build())
        seconds = fit(
            _classifier(network, config, classes), loader, config, folder, work.device, quiet=quiet
        )
        began = time.perf_counter()
        metrics = test_classifier(work, network, folder, classes, images.validation, before)
        cost = {"train_seconds": seconds, "seconds": time.perf_counter() - began}
        record = {"metrics": metrics, "cost": cost, "weights_sha256": before}
        if first:
            write_json(done, record)
    distributed.barrier()
    return metrics, cost, before


def _classifier(network: Network, config: TrainedConfig, classes: int) -> Classifier:
    """The network under new heads, whose weights follow from the seed."""
    backbone = network.build(config.drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(randomness.WEIGHTS, config.seed, 2) >> 1)
        return CLASSIFIERS[config.method.name](backbone, config.method, classes)


def test_classifier(
    work: Job,
    network: Network,
    folder: Path,
    classes: int,
    validation: Images | None,
    before: str,
) -> dict[str, float]:
    """Read the last checkpoint, choose among its heads, and go through the test split once."""
    config = work.config
    method = _classifier(network, config, classes)
    step, state = Checkpoints(folder / "checkpoints", config.checkpoint.keep).load(work.device)
    method.load_state_dict(state["method"], strict=True)
    if config.kind == "linear-augmented" and weights_hash(method.backbone) != before:
        raise UserError(f"'{folder}': the frozen encoder changed while its classifier was trained")
    method.to(device=work.device, memory_format=torch.channels_last)
    how = (work.size, config.data.mean, config.data.std, work.amp)
    chosen: dict[str, float] = {}
    if validation is not None:
        scores = [right.top1 for right in accuracy(method, validation, *how)]
        best = int(np.argmax(scores))
        factor = config.method.lr_factors[best]
        chosen = {"chosen_lr_factor": factor, "validation_top1": scores[best]}
        method.heads = nn.ModuleList([method.heads[best]])
    (right,) = accuracy(method, work.splits.test, *how)
    return {"top1": right.top1, "top5": right.top5, **chosen, "steps": step}


def fitted(config: TrainedConfig, images: int) -> TrainedConfig:
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
