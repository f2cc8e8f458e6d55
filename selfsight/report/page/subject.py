"""All that a page about a run is made of, read once."""

import json
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfsight import config as layers
from selfsight.data.bad import read_bad
from selfsight.data.config import LOADING_KEYS, DataConfig
from selfsight.data.source import cache_beside
from selfsight.data.sources.open import open_source, relocated
from selfsight.encoders.artifact import DESCRIPTION, FILE, STARTED_IN, Network
from selfsight.encoders.description import read_description
from selfsight.errors import UserError
from selfsight.evaluate.protocols import read_results
from selfsight.evaluate.protocols.config import KnnConfig, compose_cached
from selfsight.evaluate.protocols.target import EvaluationTarget, open_target
from selfsight.files import Damaged, read_json, read_text
from selfsight.logging.log import read_metrics
from selfsight.pretraining.config import RunConfig, read_run_config
from selfsight.report.page.seen import Seen, look
from selfsight.train.cost import is_cost
from selfsight.train.folder import BAD_IMAGES, CONFIG
from selfsight.train.precision import pick_device, pick_precision


@dataclass(frozen=True)
class Subject:
    """A run, as a page shows it.

    Attributes:
        run: its folder; where: the folder or file that was named.
        config: as in its config.yaml.
        images: the keys of the training images, or of those that an override names where these are
            gone; relative paths are those of the folder that the run was started in.
        head: the comments at the head of config.yaml: versions, revision, device.
        described: encoder.json; {} before the first step.
        metrics: the records of metrics.jsonl.
        cost: cost.json: seconds, device and the like; {} of an unfinished run.
        results: the records of results.json that were measured with this encoder's weights.
        others: how many records were measured with other weights.
        bad_images: name and reason of each broken image.
        finished: whether the training came to its end.
        network: the encoder, from the file or the newest checkpoint; None if there is none yet.
        step: of the checkpoint that the encoder is from; None of a finished run.
        seen: the images that are shown; None if they cannot be read.
        left_out: why panels are missing, a sentence each.
    """

    run: Path
    config: RunConfig
    images: DataConfig
    head: tuple[str, ...]
    described: dict[str, Any]
    metrics: list[dict[str, Any]]
    cost: dict[str, Any]
    results: list[dict[str, Any]]
    others: int
    bad_images: list[str]
    finished: bool
    network: Network | None
    step: int | None
    seen: Seen | None
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.run.absolute().name

    def keys_of(self, record: dict[str, Any]) -> dict[str, Any]:
        """The keys that make the evaluation of a record another than the usual one of this run:
        its labels, its seed, changes of the protocol, other images."""
        settings = dict(record.get("settings") or {})
        found = dict(settings.pop("changed", None) or {})
        made = ("labels", "subset_sha256", "step")  # by the evaluation
        found |= {key: value for key, value in settings.items() if key not in made}
        own_seed = self.described.get("seed", self.config.seed)
        if record.get("seed", own_seed) != own_seed:
            found["seed"] = record["seed"]
        own, used = self._here(self.described.get("data") or {}), self._here(record["data"])
        for key in own.keys() & used.keys() - set(LOADING_KEYS):
            if used[key] != own[key]:
                found[f"data.{key}"] = record["data"][key]
        return dict(sorted(found.items()))

    def _here(self, data: dict[str, Any]) -> dict[str, Any]:
        """The keys of the data with paths from the folder that the run was started in."""
        start = self.described.get(STARTED_IN)
        if not isinstance(start, str):
            return data
        return relocated(data, lambda path: os.path.join(start, path))


def read_subject(where: str | Path, overrides: list[str] | None = None) -> Subject:
    """Everything about a run.

    Args:
        where: the run's folder, or the encoder.safetensors in it.
        overrides: 'key=value' of the images: data.path=..., device=cpu.
    Raises: UserError for something else, for a damaged file, or for images that an override names
        and that cannot be read.
    """
    overrides = overrides or []
    _check(overrides)
    run = run_folder(where)
    config = read_run_config(run)
    about = run / DESCRIPTION
    described = read_description(about) if about.is_file() else {}
    target, left_out = None, []
    try:
        target = _target(run, overrides)
    except UserError as error:
        left_out.append(f"{_PICTURES} are left out: {_first_line(error)}")
    results, others = _results(run, described.get("weights_sha256"), target)
    seen, images = None, config.data
    named = any(key.startswith("data.") for key in overrides)
    if target is not None:
        images = layers.validate(DataConfig, target.base["data"])
        try:
            seen = look(target, results, overrides)
        except (UserError, OSError) as error:
            if named:
                raise  # they were named for this page
            left_out.append(
                f"{_PICTURES} are left out: {_first_line(error)}. Where the images are elsewhere "
                f"now, name them: selfsight report {shlex.quote(str(run))} data.path=FOLDER"
            )
        if seen is not None and named and not _can_be_opened(images, run):
            images = layers.validate(DataConfig, seen.data)  # they were moved to there
    finished = (run / FILE).is_file()
    return Subject(
        run=run,
        config=config,
        images=images,
        head=_head(run),
        described=described,
        metrics=read_metrics(run / "metrics.jsonl"),
        cost=_cost(run),
        results=results,
        others=others,
        bad_images=read_bad(run / BAD_IMAGES),
        finished=finished,
        network=target and target.encoder,
        step=target and target.settings.get("step"),
        seen=seen,
        left_out=tuple(left_out),
    )


def _check(overrides: list[str]) -> None:
    """A wrong key, or a device that is not there, is an error and not a missing panel.

    Raises: UserError.
    """
    config = compose_cached(KnnConfig, {}, overrides)
    pick_precision(config.precision, pick_device(config.device))


def _can_be_opened(data: DataConfig, run: Path) -> bool:
    try:
        open_source(data, "train", cache_beside(run))
    except UserError:
        return False
    return True


_PICTURES = "The map, the neighbours and the mistakes"


def run_folder(where: str | Path) -> Path:
    """The folder of a run, or of the encoder.safetensors in it. Raises: UserError for anything
    else."""
    where = Path(where)
    if not where.exists():
        raise UserError(f"'{where}': no such run folder")
    folder = where.parent if where.name == FILE and where.is_file() else where
    if not (folder / CONFIG).is_file():
        if folder is not where:
            raise UserError(
                f"'{where}': there is no {CONFIG} beside it, which says how it was trained; a "
                f"report is made of a run's whole folder"
            )
        raise UserError(f"'{where}' is not a run folder (no {CONFIG} in it)")
    return folder


def as_typed(value: Any) -> str:
    """A value as it is typed on a command line.

    >>> as_typed("knn"), as_typed([1, 2]), as_typed(None)
    ('knn', '[1, 2]', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _target(run: Path, overrides: list[str]) -> EvaluationTarget:
    """What evaluations measure; its folder is the run where no evaluation has made another."""
    target = replace(open_target(run, overrides, None), loaded=None)  # nothing is measured
    return target if target.folder.is_dir() else replace(target, folder=run)


def _results(
    run: Path, described: str | None, target: EvaluationTarget | None
) -> tuple[list[dict[str, Any]], int]:
    """The records of this encoder and of what it is compared with; the number of other encoders'
    records.

    Args:
        described: the hash of the weights in encoder.json, for an encoder that cannot be read.
    """
    records = read_results(target.folder if target else run)
    sha = target.weights_sha256 if target else described
    ours = [r for r in records if r["evaluated"] != "encoder" or r.get("weights_sha256") == sha]
    return ours, len(records) - len(ours)


def _head(run: Path) -> tuple[str, ...]:
    lines = read_text(run / CONFIG).splitlines()
    return tuple(line.lstrip("# ") for line in lines if line.startswith("#"))


def _cost(run: Path) -> dict[str, Any]:
    try:
        found = read_json(run / "cost.json")
    except (OSError, Damaged):
        return {}
    return found if is_cost(found) else {}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
