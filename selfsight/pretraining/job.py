"""The commands about pretraining as functions: pretrain an encoder, save an untrained one, draw
views. The command line only calls them."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsight import agreement, blame, distributed
from selfsight.config import Config, flatten
from selfsight.data.images import Images
from selfsight.data.sources.open import with_range
from selfsight.encoders.artifact import (
    BEST,
    DESCRIPTION,
    FILE,
    INITIAL,
    START,
    STARTED_IN,
    save_copy,
    save_encoder,
)
from selfsight.encoders.description import describe
from selfsight.errors import UserError
from selfsight.files import sealed, write_json
from selfsight.locks import watched
from selfsight.logging.log import read_metrics
from selfsight.methods import Method
from selfsight.pretraining.build import (
    build_method,
    check_part,
    check_start,
    image_size,
    loaded_part,
    with_hash,
    without_weights,
)
from selfsight.pretraining.check_knn import periodic_knn
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.images import training_images
from selfsight.pretraining.own_parts import find_method, is_own, parts_of
from selfsight.pretraining.said import announce, tell_bad
from selfsight.recompute import check_parts, check_recompute
from selfsight.train.engine import check_sync_batchnorm, fit
from selfsight.train.folder import (
    BAD_IMAGES,
    DATA,
    check_data,
    claim,
    code,
    extend_run,
    has_trained,
    is_claimed,
    owned,
)
from selfsight.train.hooks import Hook
from selfsight.train.loader import ViewLoader, make_loader
from selfsight.train.optim import check_optimizer
from selfsight.train.precision import pick_device
from selfsight.train.probe import OnlineProbe
from selfsight.train.sharding import check_shard, whole


def pretrain(config: RunConfig, quiet: bool = False, hooks: Sequence[Hook] = ()) -> Path:
    """Pretrain as configured, from the newest checkpoint in the run's folder if there is one.

    Returns: the run's folder.
    Raises: UserError for data or options that do not fit, or for a folder that holds another
    configuration; train.signals.Interrupted after SIGTERM or Ctrl-C.
    """
    if config.run is None:
        raise UserError("run=null: a run needs a folder; set run=FOLDER")
    check_start(config)
    folder, extend = Path(config.run), config.extend
    # config.yaml does not say it: the next start, or a run made from that file, asks again
    config = with_hash(config).model_copy(update={"extend": False})
    seconds = 60 * config.timeout_minutes
    with agreement.joined(pick_device(config.device), seconds, config.data.patience) as device:
        first = distributed.rank() == 0
        check = lambda: check_sync_batchnorm(config.sync_batchnorm, device)  # noqa: E731
        agreement.by_all(check, lambda _: _alike(config))
        with owned(folder, config, extend), contextlib.ExitStack() as stack:
            files = [file for part in parts_of(config.tree()) for file in part.files]
            stack.enter_context(blame.blamed(files))
            images = training_images(config, device, folder / BAD_IMAGES)
            data = agreement.by_first(lambda: check_data(folder, config, images.source))
            job = agreement.by_all(lambda: assemble(config, device, images, hooks))
            agreement.by_first(lambda: _begin(job, data, extend))
            if first and not quiet:
                announce(config, job.images, job.method, device)
            stack.enter_context(contextlib.nullcontext() if first else watched(folder))
            fit(**job.arguments(), quiet=quiet)
            agreement.by_first(lambda: _save(job))
        return folder


def _alike(config: RunConfig) -> dict[str, Any]:
    """What must not differ between the processes of a run: keys and versions."""
    keys = {"run": config.run, "shard": config.shard, **code()}
    return {**dict(flatten(config.identity())), **keys}


def _save(job: "Job") -> None:
    """Write what a finished run leaves."""
    folder, config = Path(job.config.run), job.config
    save_encoder(folder, whole(job.method).backbone, job.description())
    if config.save_as:
        save_copy(folder, config.save_as, _last_record(folder, job))
    tell_bad(folder / BAD_IMAGES)


@dataclass(frozen=True)
class Job:
    """What `fit` needs for a pretraining."""

    config: RunConfig
    images: Images
    loader: ViewLoader
    method: Method
    device: torch.device
    probe: OnlineProbe | None
    hooks: tuple[Hook, ...]

    def description(self, backbone: nn.Module | None = None) -> dict[str, Any]:
        """What encoder.safetensors says of the encoder (default: the method's)."""
        config, method = self.config, self.method
        started = {"weights_sha256": config.weights_sha256} if config.weights else {}
        if config.teacher.weights:
            started["teacher_sha256"] = config.teacher.weights_sha256
        if method.adapted:
            started["adapted"] = method.adapted
        steps = config.steps(self.loader.steps_per_epoch)
        return describe(
            backbone or method.backbone,
            config.backbone,
            config.method.model_dump(mode="json"),
            with_range(self.images.config, self.images.source),
            image_size(config.views),
            config.seed,
            config.precision,
            {"images": len(self.images), "epochs": config.epochs, "steps": steps, **started},
            config.evaluate.resize,
        )

    def arguments(self) -> dict[str, Any]:
        """The arguments of `fit`: everything but how much it prints, and who listens."""
        return {
            "method": self.method,
            "loader": self.loader,
            "config": self.config,
            "folder": Path(self.config.run),
            "device": self.device,
            "probe": self.probe,
            "hooks": self.hooks,
            "resume": self.config.resume,
        }


def _begin(job: Job, data: dict[str, Any], extend: bool) -> None:
    """Write what a run's folder holds before the first step.

    Args:
        data: the identity of the images.
        extend: give an existing run the length of this one.
    """
    folder = Path(job.config.run)
    if extend and is_claimed(folder, job.config, extend):
        extend_run(folder, job.config, job.loader.steps_per_epoch)
    claim(folder, job.config)
    if not has_trained(folder) or not (folder / DATA).exists():
        write_json(folder / DATA, sealed(data))
    if is_own("backbone", job.config.backbone.name) and not (folder / INITIAL).exists():
        _save_start(job, job.method.backbone, INITIAL)
    if job.config.weights and not (folder / START).exists():
        _save_start(job, loaded_part(job.method.backbone), START)
    if not (folder / FILE).exists():  # so that its checkpoints can be evaluated
        write_json(folder / DESCRIPTION, sealed(job.description() | {STARTED_IN: os.getcwd()}))


def _save_start(job: Job, backbone: nn.Module, name: str) -> None:
    """Write the encoder as it is before the first step."""
    about = job.description(backbone)
    about["pretrained_on"] = {**about["pretrained_on"], "images": 0, "epochs": 0, "steps": 0}
    save_encoder(Path(job.config.run), backbone, about, name)


def assemble(
    config: RunConfig,
    device: torch.device,
    images: Images | None = None,
    hooks: Sequence[Hook] = (),
) -> Job:
    """Open the images, if they are not given, and build the method.

    Raises: UserError if they do not fit together.
    """
    images = images or training_images(config, device, Path(config.run) / BAD_IMAGES)
    loader = make_loader(config, images)
    _check_labels(config.method, images.classes)
    method, probe = build_method(config, images), None
    check_part(config, method)
    check_optimizer(config.optimizer)
    check_parts(method.backbone, config.encoder_parts)
    if config.recompute:
        check_recompute(method.backbone)
    if config.shard:
        check_shard(method, config.optimizer)
    if config.evaluate.probe and images.classes is not None:
        probe = OnlineProbe(method.backbone.num_features, len(images.classes))
    check = periodic_knn(config, images, device)
    if config.save_best:
        check = replace(check, after=lambda record: _keep_best(job, record))
    hooks = hooks if check is None else (check, *hooks)
    job = Job(config, images, loader, method, device, probe, tuple(hooks))
    return job


def _last_record(folder: Path, job: Job) -> dict[str, Any]:
    """The last metrics; those of a finished run may have been removed."""
    steps = job.config.steps(job.loader.steps_per_epoch)
    none = {"epoch": steps / job.loader.steps_per_epoch, "step": steps, "loss": None}
    return (read_metrics(folder / "metrics.jsonl") or [none])[-1]


def _keep_best(job: Job, record: dict[str, Any]) -> None:
    """Write best.safetensors, if no earlier check scored as high as this record's."""
    folder = Path(job.config.run)
    before = (r for r in read_metrics(folder / "metrics.jsonl") if r["step"] < record["step"])
    if record["knn"] > max((r["knn"] for r in before if r.get("knn") is not None), default=-1.0):
        description = job.description()
        description["pretrained_on"]["epochs"] = record["epoch"]
        description["knn"] = record["knn"]
        save_encoder(folder, whole(job.method).backbone, description, BEST)


def untrained(config: RunConfig) -> Path:
    """Save the encoder as it is before the first step, in a run folder of its own. Tables of
    results compare the trained encoders with it."""
    folder = Path(config.run)
    with owned(folder, config):
        job = assemble(without_weights(config), torch.device("cpu"))
        description = job.description()
        description["pretrained_on"] = {"images": 0, "epochs": 0}
        claim(folder, config)
        save_encoder(folder, job.method.backbone, description)
    return folder


def _check_labels(method: Config, classes: list[str] | None) -> None:
    """A method that reads labels gets them, and as many classes as it expects."""
    if "labels" not in find_method(method.name).needs:
        return
    if classes is None:
        raise UserError(
            f"method.name={method.name}: learns from labels, and these images have none; name "
            f"labelled data with data.path=..., or another method (see: selfsight methods)"
        )
    expected, found = getattr(method, "classes", None), len(classes)
    if expected not in (None, found):
        raise UserError(f"method.classes={expected}: the data have {found}; set {found}")
