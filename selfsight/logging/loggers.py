"""Copies of metrics.jsonl in other forms: a CSV table, TensorBoard, and the trackers of
experiments."""

import csv
import io
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from selfsight.config import Config, Tree
from selfsight.files import write_text
from selfsight.logging.log import read_metrics
from selfsight.logging.mlflow_run import Mlflow, MlflowConfig
from selfsight.logging.trackers import Trackio, TrackioConfig, Wandb, WandbConfig, need


class LogConfig(Config):
    """Copies of metrics.jsonl in other forms."""

    csv: bool = False  # metrics.csv: a row for each record, a column for each metric
    tensorboard: bool = False  # event files in tensorboard/ in the run's folder
    wandb: WandbConfig | None = Field(None)  # Weights & Biases; {} for its defaults
    trackio: TrackioConfig | None = Field(None)  # {} for its defaults
    mlflow: MlflowConfig | None = Field(None)  # {} for its defaults


class Logger(Protocol):
    """Receives each record that is written to metrics.jsonl."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_loggers(config: LogConfig, folder: Path, start: int, settings: Tree) -> list[Logger]:
    """The loggers that a configuration asks for.

    Args:
        start: the steps already done; later ones that were logged before will be logged again.
        settings: the whole run's configuration, which trackers of experiments show.
    Raises: UserError if a library is not installed or refuses, as Weights & Biases does without a
        login.
    """
    loggers: list[Logger] = [Table(folder)] if config.csv else []
    if config.tensorboard:
        loggers.append(TensorBoard(folder / "tensorboard", start))
    if config.wandb:
        loggers.append(Wandb(config.wandb, folder, settings))
    if config.trackio:
        loggers.append(Trackio(config.trackio, folder, settings))
    if config.mlflow:
        loggers.append(Mlflow(config.mlflow, folder, settings))
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
        need("tensorboard", "log.tensorboard=true")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=start + 1)

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()
