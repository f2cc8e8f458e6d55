"""`selfsight slurm`: bash runs the printed script, with stand-ins for Slurm's commands that start
real processes and send real signals."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.utils import macros

from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.pretraining.config import compose
from selfsight.suggest.slurm import Allocation, job_script, seconds
from selfsight.train.checkpoint import Checkpoints
from tests.conftest import TINY

# As Slurm's: the command once for each machine. When one fails the others are ended, and the
# highest exit code is that of all. SIGTERM makes it kill them.
SRUN = """
trap 'kill -9 $(cat "$CLUSTER/tasks")' TERM
while [[ $1 == --* ]]; do shift; done
[ -e "$CLUSTER/task" ] && set -- bash "$CLUSTER/task" "$@"
for ((n = 0; n < SLURM_JOB_NUM_NODES; n++)); do
    "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" > "$CLUSTER/tasks"
for task in "${tasks[@]}"; do
    wait -n || { codes+=($?); kill -TERM "${tasks[@]}" 2>/dev/null; }
done
exit $(printf '%s\\n' 0 "${codes[@]}" | sort -n | tail -n 1)
"""
SCANCEL = """
[ "$*" == "--signal=TERM 1234" ] && kill -TERM $(cat "$CLUSTER/tasks")
"""
SCONTROL = """
case "$1 $2" in
    "show hostnames") printf 'localhost\\n%.0s' $(seq $SLURM_JOB_NUM_NODES) ;;
    "requeue 1234") echo again >> "$CLUSTER/queue" ;;
    *) exit 1 ;;
esac
"""


class Cluster:
    """A folder with Slurm's commands, and a job that is or was in its queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
            (folder / name).write_text(f"#!/bin/bash{text}")
            (folder / name).chmod(0o755)

    def start(self, script: str) -> None:
        """Start the job, as sbatch or the queue would."""
        asked = dict(
            line.removeprefix("#SBATCH --").split("=", 1)
            for line in script.splitlines()
            if line.startswith("#SBATCH --") and "=" in line
        )
        names = {
            "SLURM_JOB_ID": "1234",
            "SLURM_JOB_NUM_NODES": asked["nodes"],
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
            "CLUSTER": str(self.folder),
            "PATH": f"{self.folder}:{os.environ['PATH']}",
        }
        (self.folder / "job.sh").write_text(script)
        (self.folder / "queue").unlink(missing_ok=True)
        (self.folder / "tasks").unlink(missing_ok=True)
        with (self.folder / "said").open("a") as said:
            self.job = subprocess.Popen(
                ["bash", "job.sh"], cwd=self.folder, env={**os.environ, **names}, stderr=said
            )

    def until(self, moment: Callable[[], object]) -> None:
        """Wait while the job runs."""
        while not moment():
            assert self.job.poll() is None, self.said()
            time.sleep(0.05)

    def tasks(self) -> list[int]:
        """The processes that srun started, once it has."""
        file = self.folder / "tasks"
        return [int(word) for word in file.read_text().split()] if file.exists() else []

    def ended(self) -> tuple[int, bool]:
        """The exit code, and whether the job is in the queue again."""
        return self.job.wait(120), (self.folder / "queue").exists()

    def said(self) -> str:
        return (self.folder / "said").read_text()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    cluster = Cluster(tmp_path / "bin")
    yield cluster
    if hasattr(cluster, "job") and cluster.job.poll() is None:
        for task in cluster.tasks():
            os.kill(task, signal.SIGKILL)
        cluster.job.kill()


def script(*keys: str, run: str | None = None, **asked: int) -> str:
    return job_script("digits/simclr", list(keys), run, Allocation(**{"cpus": 1, **asked}))


# What is printed ----------------------------------------------------------------------------------

ODD = 'runs/it\'s $HOME ${local_rank} $$ "x" @RUN@ é\n `date` *'


def test_keys_reach_the_command_as_they_are(cluster):
    """Through bash and through torchrun, which replaces ${...} in arguments."""
    (cluster.folder / "task").write_text('printf "%s\\0" "$@" > words; pwd > where')
    keys = [f"data.path={ODD}", "method.temperature=0.3"]
    cluster.start(script(*keys, "run=x", run=ODD))
    assert cluster.ended() == (0, False), cluster.said()
    words = Path("words").read_text().split("\0")[:-1]
    given = macros.substitute(words[words.index("--no-python") + 1 :], "0")
    *command, run = given[given.index("-m") :]
    assert command == ["-m", "selfsight", "pretrain", "digits/simclr", *keys]
    assert compose("digits/simclr", [run]).config.run == ODD
    assert Path("where").read_text() == f"{Path.cwd()}\n"


def test_the_script_is_clean():
    text = script("run=a b", nodes=2, gpus=4)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-"], input=text, text=True, check=True)


def test_options_of_slurm(command, tmp_path):
    words = ["--nodes", "2", "--gpus", "4", "--time", "1-12", "--account", "vision", "--before"]
    done = command("slurm", "digits/simclr", *words, "90", "--run", "runs/a b", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")} == {
        *("job-name=a-b", "nodes=2", "ntasks-per-node=1", "gpus-per-node=4"),
        *("cpus-per-task=32", "time=1-12", "account=vision", "requeue", "open-mode=append"),
        "signal=B:USR1@90",
    }
    assert "gpus-per-node" not in script("device=cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.temprature=1"], "Unknown key 'method.temprature'. Did you mean 'temperature'?"),
        (
            ["batch_size=100", "--nodes", "2", "--gpus", "4"],
            "batch_size=100: not a multiple of 8 processes x accumulate=1; choose a multiple of 8",
        ),
        (["teacher.weights=x"], "teacher.weights: simclr has no frozen teacher"),
        (["--time", "2:00"], "--time 2:00: the run would be stopped at once, 180 seconds before"),
        (["--time", "12h"], "--time 12h: no time of Slurm; give hours:minutes:seconds"),
        (["--partition", "a b"], "--partition 'a b': no name that Slurm could have"),
        (["run=bin"], "'bin' exists and is not a run folder"),
    ],
)
def test_a_mistake_is_said_before_the_job_waits(cluster, command, words, said):
    done = command("slurm", "digits/simclr", *words, cwd=Path.cwd())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_times_are_read_as_slurm_reads_them():
    times = ["90", "90:30", "1:30:00", "2-0", "1-2:03", "1-2:03:04"]
    found = [5400, 5430, 5400, 172800, 93780, 93784]
    assert [seconds(time) for time in times] == found
    with pytest.raises(UserError):
        seconds("1:2:3:4")


# When it goes back into the queue -----------------------------------------------------------------

SAVE = "mkdir -p runs/r/checkpoints; touch runs/r/checkpoints/step-%s.0123456789abcdef.pt"


@pytest.mark.parametrize(
    ("task", "code", "again"),
    [
        ("exit 0", 0, False),
        (f"{SAVE % '00000012'}; exit 0", 0, False),
        ("exit 1", 1, False),  # as after a mistake
        (f"{SAVE % '00000008'}; exit 1", 1, False),  # no newer one
        (f"{SAVE % '00000009'}; exit 1", 0, True),
        (f"{SAVE % '100000000'}; exit 1", 0, True),
        (f"{SAVE % '00000009'}.damaged; exit 1", 1, False),
        (f"{SAVE % '00000009'}; kill -9 $$", 0, True),
    ],
)
def test_only_a_run_that_got_on_is_put_back(cluster, task, code, again):
    subprocess.run(["bash", "-c", SAVE % "00000008"], check=True)
    (cluster.folder / "task").write_text(task)
    job = script("device=cpu", run="runs/s").replace("run=runs/s", "run=runs/r")
    cluster.start(job)
    assert cluster.ended() == (code, again), cluster.said()


@pytest.mark.parametrize(("step", "code", "again"), [("00000003", 0, True), ("00000000", 1, False)])
def test_the_signal_before_the_limit_reaches_the_run(cluster, step, code, again):
    """As torchrun, the task ends with 1 once all is saved; a second signal changes nothing."""
    file = f"trap 'sleep 0.5; {SAVE % step}; exit 1' TERM; touch up; sleep 60 & wait"
    (cluster.folder / "task").write_text(file)
    cluster.start(script("device=cpu", run="runs/r"))
    cluster.until(Path("up").exists)
    os.kill(cluster.job.pid, signal.SIGUSR1)
    time.sleep(0.2)
    os.kill(cluster.job.pid, signal.SIGUSR1)
    assert cluster.ended() == (code, again), cluster.said()
    assert "the time of this job ends in 180 seconds or less: saving" in cluster.said()


def test_a_cancelled_job_is_not_put_back(cluster):
    """scancel sends SIGTERM to the tasks and to the script."""
    file = f"trap '{SAVE % '00000003'}; exit 1' TERM; touch up; sleep 60 & wait"
    (cluster.folder / "task").write_text(file)
    cluster.start(script("device=cpu", run="runs/r"))
    cluster.until(Path("up").exists)
    for process in (cluster.job.pid, *cluster.tasks()):
        os.kill(process, signal.SIGTERM)
    assert cluster.ended() == (-signal.SIGTERM, False)


# Real trainings -----------------------------------------------------------------------------------

LONG = [*TINY, "epochs=1000", "max_steps=120", "checkpoint={every_epochs: 0, every_steps: 0}"]


def steps(run: str) -> int:
    return len(read_metrics(Path(run) / "metrics.jsonl"))


def saved(run: str) -> list[int]:
    return [step for step, _ in Checkpoints(Path(run) / "checkpoints").files()]


@pytest.mark.slow
def test_a_run_over_several_jobs_is_the_undisturbed_run(cluster):
    """Two processes; the name of the run's folder is odd."""
    name = "runs/it's $HOME"
    cluster.start(script(*LONG, gpus=2, run="runs/whole"))
    assert cluster.ended() == (0, False), cluster.said()
    job = script(*LONG, gpus=2, run=name)
    for part in range(2):
        cluster.start(job)
        before = steps(name)
        cluster.until(lambda before=before: steps(name) > before + 10)
        os.kill(cluster.job.pid, signal.SIGUSR1)
        assert cluster.ended() == (0, True), cluster.said()
        assert len(saved(name)) == part + 1
        assert saved(name)[-1] < 120
    cluster.start(job)
    assert cluster.ended() == (0, False), cluster.said()
    assert "Continuing after step" in cluster.said()
    whole, pieces = (Path(run, "encoder.safetensors").read_bytes() for run in ("runs/whole", name))
    assert whole == pieces
    cluster.start(job)  # of a finished run
    assert cluster.ended() == (0, False), cluster.said()


@pytest.mark.slow
def test_a_mistake_of_the_run_is_not_put_back(cluster):
    """One that shows only when the images are there."""
    cluster.start(script(*TINY, "data.path=nowhere", "data.source=folder", gpus=2, run="runs/a"))
    assert cluster.ended() == (1, False)
    assert "nowhere" in cluster.said()


@pytest.mark.slow
@pytest.mark.parametrize("has_saved", [False, True])
def test_a_machine_that_fails_ends_all(cluster, has_saved):
    """Two machines of a process each: one is killed with its torchrun. The job goes back if the run
    has saved meanwhile."""
    every = f"checkpoint.every_steps={5 if has_saved else 0}"
    cluster.start(script(*LONG, every, nodes=2, run="runs/a"))
    cluster.until(lambda: steps("runs/a") > 12)
    task = cluster.tasks()[1]
    children = Path(f"/proc/{task}/task/{task}/children").read_text().split()
    for process in (task, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    assert cluster.ended() == ((0, True) if has_saved else (137, False)), cluster.said()
    assert not any(Path(f"/proc/{process}").exists() for process in cluster.tasks())
