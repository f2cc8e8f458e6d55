"""Trackio and MLflow on real, local stores: one run for a run folder, each step once."""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from selfsight.errors import UserError
from selfsight.logging import mlflow_run
from selfsight.logging.log import read_metrics
from selfsight.logging.mlflow_run import MLFLOW_ID, Mlflow, MlflowConfig
from selfsight.logging.trackers import TRACKIO_ID, Trackio, TrackioConfig
from tests.conftest import power_cuts
from tests.logging.test_loggers import train

SAVE = "checkpoint={every_epochs: 0, every_steps: 2}"


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory):
    """The library reads the folder when it is imported."""
    if "trackio" not in sys.modules:
        os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("trackio").TRACKIO_DIR


@pytest.fixture
def trackio_runs(trackio_folder, tmp_path, monkeypatch):
    """Of a project of the test: name of a run -> its records, as the library's storage has them."""
    from trackio.sqlite_storage import SQLiteStorage

    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    project = f"project {tmp_path.name}"

    def runs():
        names = SQLiteStorage.get_runs(project)
        return {name: SQLiteStorage.get_logs(project, name) for name in names}

    runs.project = project
    return runs


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    """The address of a store of files."""
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "store").as_uri()


def mlflow_runs(store: str, experiment: str = "selfsight") -> dict:
    """Name of a run and its id -> (run, the steps of each metric)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    return {
        run.info.run_id: (
            run,
            {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        )
        for run in runs
    }


def interrupted(monkeypatch, folder, *keys):
    """Train 5 steps; step 3 was logged before a crash, and comes again."""
    power_cuts(monkeypatch, 4)
    with pytest.raises(RuntimeError):
        train(folder, "max_steps=5", SAVE, *keys)
    monkeypatch.undo()


def expected(folder) -> dict:
    """Name of a metric -> (step, value) of each record that has one."""
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    names = {name for record in records for name in record} - {"step"}
    return {n: [(r["step"], r[n]) for r in records if r.get(n) is not None] for n in names}


TIMES = ("seconds", "images_per_second")  # the tracker keeps those of the first time


def test_trackio_has_each_step_once_in_one_run(trackio_runs, tmp_path, monkeypatch):
    key = f"log.trackio={{project: {trackio_runs.project}, name: mine}}"
    with monkeypatch.context() as patch:
        interrupted(patch, tmp_path / "run", key)
    train(tmp_path / "run", "max_steps=5", SAVE, key)
    ((name, logs),) = trackio_runs().items()
    assert name.startswith("mine-")
    assert (tmp_path / "run" / TRACKIO_ID).read_text() == f"{name}\n"
    for metric, values in expected(tmp_path / "run").items():
        found = [(log["step"], log[metric]) for log in logs if metric in log]
        if metric in TIMES:
            assert [step for step, _ in found] == [step for step, _ in values]
        else:
            assert found == values
    train(tmp_path / "run", "max_steps=5", SAVE, key)  # there is nothing left to log
    assert {name: len(logs) for name, logs in trackio_runs().items()} == {name: 5}


def test_mlflow_has_each_step_once_in_one_run(mlflow_store, tmp_path, monkeypatch):
    key = f"log.mlflow={{tracking_uri: '{mlflow_store}', name: mine}}"
    power_cuts(monkeypatch, 4)
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", "max_steps=5", SAVE, key)
    ((run, _),) = mlflow_runs(mlflow_store).values()
    assert run.info.status == "KILLED"
    power_cuts(monkeypatch)
    train(tmp_path / "run", "max_steps=5", SAVE, key, "log_every=1")
    ((run, metrics),) = mlflow_runs(mlflow_store).values()
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert (tmp_path / "run" / MLFLOW_ID).read_text() == f"{run.info.run_id}\n"
    assert run.data.params["method.name"] == "simclr"
    assert run.data.params["optimizer.lr"] == "0.001"
    wanted = expected(tmp_path / "run")
    assert metrics.keys() == wanted.keys()
    for metric, values in wanted.items():
        if metric in TIMES:
            assert [step for step, _ in metrics[metric]] == [step for step, _ in values]
        else:
            assert metrics[metric] == [(s, pytest.approx(v)) for s, v in values]


def test_a_folder_made_anew_is_another_run_and_a_moved_one_the_same(
    trackio_runs, mlflow_store, tmp_path
):
    keys = [f"log.trackio.project={trackio_runs.project}", "max_steps=1"]
    keys.append(f"log.mlflow.tracking_uri={mlflow_store}")
    train(tmp_path / "run", *keys)
    shutil.rmtree(tmp_path / "run")
    train(tmp_path / "run", *keys)
    assert len(trackio_runs()) == len(mlflow_runs(mlflow_store)) == 2
    (tmp_path / "run").rename(tmp_path / "moved")
    train(tmp_path / "moved", *keys[:1], keys[2], "max_steps=2", "extend=true")
    assert sorted(len(logs) for logs in trackio_runs().values()) == [1, 2]
    counts = sorted(len(m["loss"]) for _, m in mlflow_runs(mlflow_store).values())
    assert counts == [1, 2]
    train(tmp_path / "other", *keys)
    assert len(trackio_runs()) == len(mlflow_runs(mlflow_store)) == 3


def record(step: int) -> dict:
    return {"step": step, "epoch": step / 10, "loss": 1.0 / step, "empty": None}


def lines(folder, steps: range) -> None:
    text = "".join(json.dumps(record(step)) + "\n" for step in steps)
    (folder / "metrics.jsonl").write_text(text)


def test_what_was_not_sent_before_a_kill_is_sent_when_the_run_goes_on(
    trackio_runs, mlflow_store, tmp_path
):
    """A killed process leaves steps in metrics.jsonl that the trackers lack."""
    lines(tmp_path, range(1, 4))
    open_them = (
        lambda: Trackio(TrackioConfig(project=trackio_runs.project), tmp_path, {"a": {"b": 1}}),
        lambda: Mlflow(MlflowConfig(tracking_uri=mlflow_store), tmp_path, {"a": {"b": 1}}),
    )
    for opened in open_them:
        opened().close()
    lines(tmp_path, range(1, 6))
    for opened in open_them:
        logger = opened()
        for step in (4, 5, 6):
            logger.write(record(step))
        logger.close()
    (logs,) = trackio_runs().values()
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    assert "empty" not in logs[0]
    ((run, metrics),) = mlflow_runs(mlflow_store).values()
    assert [step for step, _ in metrics["loss"]] == [1, 2, 3, 4, 5, 6]
    assert run.data.params == {"a.b": "1"}


def test_a_store_that_fails_while_training_is_said_once_and_gets_all_later(
    mlflow_store, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(mlflow_run, "TRY_AGAIN", 0.0)
    logger = Mlflow(MlflowConfig(tracking_uri=mlflow_store), tmp_path, {})
    logger.write(record(1))
    logger._client.delete_run(logger._id)  # it takes no more metrics
    monkeypatch.setattr(mlflow_run, "SEND_EVERY", 0.0)
    logger._next = 0.0
    logger.write(record(2))
    logger.write(record(3))
    assert capsys.readouterr().err.count("training goes on") == 1
    logger._client.restore_run(logger._id)
    logger.write(record(4))
    logger.close()
    ((_, metrics),) = mlflow_runs(mlflow_store).values()
    assert [step for step, _ in metrics["loss"]] == [1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_one_run_at_a_time_makes_the_tables_of_a_new_database(tmp_path):
    """Two at once leave a database that no later run can open."""
    inside, most = [], []

    class Client:
        def __init__(self, tracking_uri):
            inside.append(tracking_uri)
            time.sleep(0.05)
            most.append(len(inside))

        def get_experiment_by_name(self, name):
            inside.pop()

    uri = f"sqlite:///{tmp_path / 'one.db'}"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: mlflow_run._opened(Client, uri), range(3)))
    assert most == [1, 1, 1]


def test_a_dead_server_is_a_line_within_seconds(tmp_path, monkeypatch):
    """The library would try for four minutes, without a word."""
    pytest.importorskip("mlflow")
    for variable in mlflow_run.PATIENCE:
        monkeypatch.setenv(variable, "9")  # so that what is set in the test is taken away again
        monkeypatch.delenv(variable)
    config = MlflowConfig(tracking_uri="http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with pytest.raises(UserError, match=r"log.mlflow: .*Max retries"):
        Mlflow(config, tmp_path, {})
    assert {name: os.environ[name] for name in mlflow_run.PATIENCE} == mlflow_run.PATIENCE


def test_what_never_arrives_is_counted(mlflow_store, tmp_path, capsys):
    logger = Mlflow(MlflowConfig(tracking_uri=mlflow_store), tmp_path, {})
    logger._client.delete_run(logger._id)
    logger.write(record(1))
    logger.close()
    assert "1 records were not sent" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_was_deleted_in_the_store_is_made_anew(mlflow_store, tmp_path):
    lines(tmp_path, range(1, 4))
    config = MlflowConfig(tracking_uri=mlflow_store)
    first = Mlflow(config, tmp_path, {})
    first.close()
    first._client.delete_run(first._id)
    second = Mlflow(config, tmp_path, {})
    second.close()
    (run_id,) = mlflow_runs(mlflow_store)
    assert first._id != run_id == second._id
    assert [step for step, _ in mlflow_runs(mlflow_store)[run_id][1]["loss"]] == [1, 2, 3]


def test_many_and_long_values_are_cut_to_what_mlflow_takes(mlflow_store, tmp_path):
    settings = {f"k{n}": n for n in range(120)} | {"long": "x" * 9_000, "a=b": 1, "a?b": 2}
    logger = Mlflow(MlflowConfig(tracking_uri=mlflow_store), tmp_path, settings)
    wide = {"step": 1, "epoch": 0.1, **{f"m{n}?": float(n) for n in range(505)}}
    for step in (1, 2):
        logger.write({**wide, "step": step})
    logger.close()
    ((run, metrics),) = mlflow_runs(mlflow_store).values()
    assert len(run.data.params) == 122
    assert run.data.params["long"] == "x" * 500
    assert all(len(values) == 2 for values in metrics.values())
    assert len(metrics) == 506


def test_without_an_address_mlflow_writes_a_database_in_the_runs_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a run"
    if find_spec("alembic") is None:
        with pytest.raises(UserError, match=r"^log.mlflow: needs alembic: pip install 'selfsight"):
            train(folder, "max_steps=1", "log.mlflow={}")
        return
    with monkeypatch.context() as patch:
        interrupted(patch, folder, "log.mlflow={}")
    train(folder, "max_steps=5", SAVE, "log.mlflow={}")
    ((run_id, (_, metrics)),) = mlflow_runs(f"sqlite:///{folder / 'mlflow.db'}").items()
    assert (folder / MLFLOW_ID).read_text() == f"{run_id}\n"
    assert [step for step, _ in metrics["loss"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("log.mlflow.tracking_uri=nonsense://x", "log.mlflow: "),
        (f"log.trackio.project={'x' * 300}", "log.trackio: "),
    ],
)
def test_a_tracker_that_refuses_is_one_line(trackio_folder, tmp_path, keys, words):
    with pytest.raises(UserError, match=f"^{words}") as error:
        train(tmp_path / "run", "max_steps=1", keys)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("library", ["trackio", "mlflow"])
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, library):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}: pip install 'selfsight\[{library}\]'"):
        train(tmp_path / "run", "max_steps=1", f"log.{library}={{}}")
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_damaged_ids_are_drawn_anew(trackio_runs, tmp_path):
    (tmp_path / TRACKIO_ID).write_bytes(b"../../etc\xff")
    logger = Trackio(TrackioConfig(project=trackio_runs.project), tmp_path, {})
    logger.write(record(1))
    logger.close()
    (name,) = trackio_runs()
    assert (tmp_path / TRACKIO_ID).read_text() == f"{name}\n"
