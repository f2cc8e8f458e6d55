"""Copies of metrics.jsonl in other forms: a CSV table, TensorBoard, Weights & Biases."""

import csv
import hashlib
import importlib
import io
import re
import secrets
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from selfsight.config import Config, Tree
from selfsight.errors import UserError
from selfsight.files import write_text
from selfsight.train.log import read_metrics

WANDB_ID = "wandb_id.txt"


class WandbConfig(Config):
    """The run of Weights & Biases that the metrics are sent to."""

    project: str = "selfsight"
    name: str | None = None  # of the run (default: the folder's name)
    entity: str | None = None  # user or team that owns the project (default: your own)
    offline: bool = False  # write to the disk only; `wandb sync` uploads it later
    folder: str | None = None  # for its files (default: the run's folder)


class LogConfig(Config):
    """Copies of metrics.jsonl in other forms."""

    csv: bool = False  # metrics.csv: a row for each record, a column for each metric
    tensorboard: bool = False  # event files in tensorboard/ in the run's folder
    wandb: WandbConfig | None = Field(None)  # {} for its defaults


class Logger(Protocol):
    """Receives each record that is written to metrics.jsonl."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_loggers(config: LogConfig, folder: Path, start: int, settings: Tree) -> list[Logger]:
    """The loggers that a configuration asks for.

    Args:
        start: the steps already done; later ones that were logged before will be logged again.
        settings: the whole run's configuration, which Weights & Biases shows.
    Raises: UserError if a library is not installed or Weights & Biases refuses, as without a login.
    """
    loggers: list[Logger] = [Table(folder)] if config.csv else []
    if config.tensorboard:
        loggers.append(TensorBoard(folder / "tensorboard", start))
    if config.wandb:
        loggers.append(Wandb(config.wandb, folder, settings))
    return loggers


class Table:
    """metrics.csv, written when training ends or is stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        records = read_metrics(self._folder / "metrics.jsonl")
        text = io.StringIO()
        names = dict.fromkeys(name for record in records for name in record)
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        write_text(self._folder / "metrics.csv", text.getvalue())


class TensorBoard:
    """A scalar for each number of a record."""

    def __init__(self, folder: Path, start: int) -> None:
        _need("tensorboard", "log.tensorboard=true")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=start + 1)

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One run of Weights & Biases for each run folder: a resumed run continues it."""

    def __init__(self, config: WandbConfig, folder: Path, settings: Tree) -> None:
        wandb = _need("wandb", "log.wandb")
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
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"log.wandb: {reason}; log.wandb.offline=true keeps the run on this machine"
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        numbers = {k: v for k, v in record.items() if k != "step" and v is not None}
        self._run.log(numbers, step=record["step"])

    def close(self) -> None:
        self._run.finish()


def wandb_id(folder: Path, where: Path) -> str:
    """The id of a run, drawn when it first logs and kept in its folder: a folder of this path that
    was deleted and made anew holds another run.

    Version 0.1.0 made the id from the path; a run that has files of that id in `where` keeps it.
    """
    file = folder / WANDB_ID
    if file.is_file():
        stored = file.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch("[0-9a-z]{8,64}", stored):
            return stored
    of_path = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    goes_on = any((folder / "checkpoints").glob("step-*.pt"))
    before = goes_on and any((where / "wandb").glob(f"*run-*-{of_path}"))
    drawn = of_path if before else secrets.token_hex(8)
    write_text(file, f"{drawn}\n")
    return drawn


def _need(library: str, key: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(
            f"{key}: needs {library}: pip install 'selfsight[{library}]', or remove this key"
        ) from None
