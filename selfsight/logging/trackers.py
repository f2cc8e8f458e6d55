"""Trackers of experiments: Weights & Biases and Trackio here, MLflow in `mlflow_run.py`. A run
folder has one run in each: a run that continues logs into that, and a folder that was deleted and
made anew into another.

The id of that run is kept in the folder. Steps that come again after an interruption are left out
if the tracker has them; those that it lacks, since the process was killed before they were sent,
are taken from metrics.jsonl.
"""

import contextlib
import hashlib
import importlib
import io
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfsight.config import Config, Tree
from selfsight.errors import UserError
from selfsight.files import write_text
from selfsight.logging.log import read_metrics

METRICS = "metrics.jsonl"
WANDB_ID, TRACKIO_ID = "wandb_id.txt", "trackio_id.txt"


class WandbConfig(Config):
    """The run of Weights & Biases that the metrics are sent to."""

    project: str = "selfsight"
    name: str | None = None  # of the run (default: the folder's name)
    entity: str | None = None  # user or team that owns the project (default: your own)
    offline: bool = False  # write to the disk only; `wandb sync` uploads it later
    folder: str | None = None  # for its files (default: the run's folder)


class TrackioConfig(Config):
    """The run of Trackio that the metrics are written to; `trackio show` shows it."""

    project: str = "selfsight"
    # of the run (default: the folder's name); an id follows it, since a name is a run in Trackio
    name: str | None = None
    # a Space of Hugging Face, user/name (default: this machine, in the folder TRACKIO_DIR)
    space_id: str | None = None
    system: bool = False  # also the use of CPU, memory and GPU


class Wandb:
    """One run of Weights & Biases for each run folder: a resumed run continues it."""

    def __init__(self, config: WandbConfig, folder: Path, settings: Tree) -> None:
        wandb = need("wandb", "log.wandb")
        where = Path(config.folder).expanduser() if config.folder else folder
        where.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=config.project,
                name=config.name or folder.name,
                entity=config.entity,
                dir=where,
                id=wandb_id(folder, where),
                resume="allow",
                config=settings,
                mode="offline" if config.offline else None,
                settings=wandb.Settings(quiet=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"log.wandb: {reason(error)}; log.wandb.offline=true keeps the run on this machine"
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        self._run.log(numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def wandb_id(folder: Path, where: Path) -> str:
    """The id of a run, drawn when it first logs and kept in its folder.

    Version 0.1.0 made the id from the path; a run that has files of that id in `where` keeps it.
    """
    of_path = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    goes_on = any((folder / "checkpoints").glob("step-*.pt"))
    before = goes_on and any((where / "wandb").glob(f"*run-*-{of_path}"))
    drawn = of_path if before else secrets.token_hex(8)
    return kept_id(folder / WANDB_ID, "[0-9a-z]{8,64}", drawn)


class Trackio:
    """One run of Trackio for each run folder."""

    def __init__(self, config: TrackioConfig, folder: Path, settings: Tree) -> None:
        self._library = trackio = need("trackio", "log.trackio")
        plain = re.sub(r"[^\w. -]", "_", config.name or folder.name)
        drawn = f"{plain}-{secrets.token_hex(4)}"
        name = kept_id(folder / TRACKIO_ID, r"[\w. -]*-[0-9a-f]{8}", drawn)
        with refused("log.trackio", "leave out log.trackio.space_id to stay on this machine"):
            with _unprinted():
                self._run = trackio.init(
                    project=config.project,
                    name=name,
                    space_id=config.space_id,
                    config=settings,
                    resume="allow",
                    embed=False,
                    auto_log_cpu=config.system,
                    auto_log_gpu=config.system,
                )
            # nowhere else does the library tell the last step of a run here or on a Space
            self._last = self._run._next_step - 1
        for record in read_metrics(folder / METRICS):
            self.write(record)

    def write(self, record: dict[str, Any]) -> None:
        if record["step"] > self._last:
            self._last = record["step"]
            self._run.log(numbers(record), step=record["step"])

    def close(self) -> None:
        with _unprinted():
            self._library.finish()  # of the run alone, it would be finished again at the exit


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The metrics of a record that have a value."""
    return {k: v for k, v in record.items() if k != "step" and v is not None}


@contextlib.contextmanager
def refused(key: str, remedy: str) -> Iterator[None]:
    """A library that refuses to start is one line.

    Args:
        key: as log.mlflow, whose last part is the library's name.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:  # of what a library needs for one of its stores
        extra = key.rpartition(".")[2]
        raise UserError(
            f"{key}: needs {error.name or error}: pip install 'selfsight[{extra}]', or {remedy}"
        ) from None
    except Exception as error:  # they raise what their own libraries raise
        raise UserError(f"{key}: {reason(error)}; {remedy}") from None


def reason(error: Exception) -> str:
    """The first line of an error's text, as part of a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _unprinted() -> contextlib.AbstractContextManager[Any]:
    """What a library prints is left out: a run has its own lines."""
    return contextlib.redirect_stdout(io.StringIO())


def kept_id(file: Path, pattern: str, drawn: str) -> str:
    """The id in a file of a run's folder; if it has none, or a damaged one, `drawn`, which is kept
    from now on: a folder of this path that was deleted and made anew holds another run."""
    found = stored_id(file, pattern)
    if found is None:
        write_text(file, f"{drawn}\n")
    return found or drawn


def stored_id(file: Path, pattern: str) -> str | None:
    """The id in a file; None without one, or if it does not match the pattern."""
    if not file.is_file():
        return None
    stored = file.read_text(encoding="utf-8", errors="replace").strip()
    return stored if re.fullmatch(pattern, stored) else None


def need(module: str, key: str) -> Any:
    """A module of a library that is an extra of the library's name."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise UserError(
            f"{key}: needs {library}: pip install 'selfsight[{library}]', or remove this key"
        ) from None
