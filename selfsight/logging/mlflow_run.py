"""MLflow: one run for each run folder, see `trackers.py`."""

import contextlib
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from selfsight.config import Config, Tree, flatten
from selfsight.files import write_text
from selfsight.locks import locked
from selfsight.logging.log import read_metrics, say
from selfsight.logging.trackers import METRICS, need, numbers, reason, refused, stored_id

MLFLOW_ID = "mlflow_id.txt"
SEND_EVERY = 10.0  # seconds: MLflow gets the metrics of this time together
TRY_AGAIN = 300.0  # seconds after a failure
# What the library waits for a server, and a step of the training with it; its own are minutes.
# Variables that the user has set are kept.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SQLITE = "sqlite:///"  # a path follows
MOST_METRICS, MOST_PARAMS = 1_000, 100  # of one request to MLflow
LONGEST_VALUE, LONGEST_KEY = 500, 250  # characters of a parameter that every MLflow takes


class MlflowConfig(Config):
    """The run of MLflow that the metrics and the configuration are sent to."""

    # a server's address or a database (default: MLFLOW_TRACKING_URI, else RUN/mlflow.db)
    tracking_uri: str | None = None
    experiment: str = "selfsight"
    name: str | None = None  # of the run (default: the folder's name)


class Mlflow:
    """One run of MLflow for each run folder.

    A request that fails while training does not end it: what was not sent is sent later, at the
    latest when the run goes on.
    """

    def __init__(self, config: MlflowConfig, folder: Path, settings: Tree) -> None:
        # else the library would report its use to its makers, which nobody has asked for
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        client = need("mlflow.tracking", "log.mlflow").MlflowClient
        for name in ("mlflow", "alembic"):  # they tell of each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        local = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._next, self._failed = 0.0, False
        with refused("log.mlflow", "set log.mlflow.tracking_uri to a store that answers"):
            self._client = _opened(client, uri)
            self._id = self._known(folder) or self._made(config, folder, settings)
            history = self._client.get_metric_history(self._id, "epoch")
            self._last = max((metric.step for metric in history), default=0)
        for record in read_metrics(folder / METRICS):
            self.write(record)

    def _known(self, folder: Path) -> str | None:
        """The id of the folder's run, if the store has it."""
        from mlflow.exceptions import MlflowException

        run_id = stored_id(folder / MLFLOW_ID, "[0-9a-f]{32}")
        if run_id is None:
            return None
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _made(self, config: MlflowConfig, folder: Path, settings: Tree) -> str:
        """A new run with the configuration as its parameters."""
        from mlflow.entities import Param

        name = config.name or folder.name
        run = self._client.create_run(self._experiment(config.experiment), run_name=name)
        values = {_key(k): str(v)[:LONGEST_VALUE] for k, v in flatten(settings)}
        params = [Param(k, v) for k, v in values.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
        write_text(folder / MLFLOW_ID, f"{run.info.run_id}\n")
        return run.info.run_id

    def _experiment(self, name: str) -> str:
        """The id of the experiment, which is made if there is none."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another run has just made it
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def write(self, record: dict[str, Any]) -> None:
        if record["step"] <= self._last:
            return
        self._last = record["step"]
        self._waiting.append((int(1000 * time.time()), record))
        if time.monotonic() >= self._next:
            self._send()

    def _send(self) -> None:
        """Send what waits, whole records at a time, so that none is sent twice."""
        try:
            while self._waiting:
                widest = max(len(record) for _, record in self._waiting)
                part = self._waiting[: max(1, MOST_METRICS // widest)]
                self._client.log_batch(self._id, metrics=_metrics(part))
                del self._waiting[: len(part)]
            self._next, self._failed = time.monotonic() + SEND_EVERY, False
        except Exception as error:  # of the library, of the network, of a database
            self._next = time.monotonic() + TRY_AGAIN
            if not self._failed:
                say(f"log.mlflow: {reason(error)}; training goes on, and it is tried again")
            self._failed = True

    def close(self) -> None:
        status = "FINISHED" if sys.exc_info()[0] is None else "KILLED"  # by an error or a signal
        self._send()
        if self._waiting:
            say(
                f"log.mlflow: {len(self._waiting)} records were not sent; {METRICS} holds them: "
                f"when the run goes on, they are sent"
            )
            return  # the store would not answer to the following, either
        try:
            self._client.set_terminated(self._id, status)
        except Exception as error:  # as above
            say(f"log.mlflow: {reason(error)}; the run is still marked as running there")


def _opened(client: Any, uri: str) -> Any:
    """A client of the store. Runs that start at once on a new SQLite file would make its tables
    together, which damages it; one waits for the other, but not on Windows."""
    file = Path(uri.removeprefix(SQLITE))
    alone = uri.startswith(SQLITE) and file.parent.is_dir()
    name = f".{file.name}.lock"
    with locked(file.parent, name, wait=True) if alone else contextlib.nullcontext():
        opened = client(tracking_uri=uri)
        if alone:
            opened.get_experiment_by_name("Default")  # it makes the rest of the tables
    return opened


def _metrics(records: list[tuple[int, dict[str, Any]]]) -> list[Any]:
    """The numbers of records, each with its time in ms, as MLflow takes them."""
    from mlflow.entities import Metric

    return [
        Metric(_key(name), value, at, record["step"])
        for at, record in records
        for name, value in numbers(record).items()
    ]


def _key(name: str) -> str:
    """A name that MLflow takes: others have characters that are no part of one."""
    return re.sub(r"[^\w./ -]", "_", name)[:LONGEST_KEY]
