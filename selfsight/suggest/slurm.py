"""`selfsight slurm`: a script that pretrains as a job of Slurm, on one machine or more, and puts
itself back into the queue when its time ends."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from selfsight import __version__
from selfsight.errors import UserError
from selfsight.pretraining.build import check_start
from selfsight.pretraining.config import RunConfig, compose
from selfsight.suggest.recipe import key_value
from selfsight.train.folder import is_claimed
from selfsight.train.loader import check_shares

TEMPLATE = Path(__file__).with_name("slurm.sh")
# minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]
TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):(?=\d+:))?(\d+)(?::(\d+))?)")
NAME = re.compile(r"[\w.,:@/+=-]+")  # of a partition or an account


@dataclass(frozen=True)
class Allocation:
    """What the job asks Slurm for.

    Attributes:
        nodes: machines.
        gpus: of each machine, one process for each; with device=cpu only the processes.
        cpus: cores of each process.
        time: limit, as Slurm writes it; None for that of the partition.
        before: seconds before the limit at which the run saves and ends.
    """

    nodes: int = 1
    gpus: int = 1
    cpus: int = 8
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    before: int = 180

    def __post_init__(self) -> None:
        """Raises: UserError for a value that Slurm would refuse, or that would stop the run."""
        for option in ("partition", "account"):
            value = getattr(self, option)
            if value is not None and not NAME.fullmatch(value):
                raise UserError(f"--{option} {value!r}: no name that Slurm could have; repair it")
        if self.time is not None and 0 < seconds(self.time) <= self.before:  # 0: no limit
            raise UserError(
                f"--time {self.time}: the run would be stopped at once, {self.before} seconds "
                f"before the limit; give more time, or a smaller --before"
            )

    def options(self, name: str, device: str) -> str:
        """Lines for Slurm, of a job of this name."""
        asked = {"job-name": name, "nodes": self.nodes, "cpus-per-task": self.cpus * self.gpus}
        asked |= {"gpus-per-node": self.gpus} if device != "cpu" else {}
        chosen = {key: getattr(self, key) for key in ("time", "partition", "account")}
        asked |= {key: value for key, value in chosen.items() if value is not None}
        return "\n".join(f"#SBATCH --{key}={value}" for key, value in asked.items())


def seconds(time: str) -> int:
    """The seconds of a time as Slurm writes it. Raises: UserError for another text.

    >>> seconds("90"), seconds("1:30:00"), seconds("1-2")
    (5400, 5400, 93600)
    """
    found = TIME.fullmatch(time)
    if found is None:
        raise UserError(
            f"--time {time}: no time of Slurm; give hours:minutes:seconds (12:00:00), "
            f"days-hours (2-0) or minutes (720)"
        )
    days, *of_day, hours, minutes, rest = (int(part or 0) for part in found.groups())
    hour, minute, second = of_day
    return 86400 * days + 3600 * (hour + hours) + 60 * (minute + minutes) + second + rest


def job_script(
    what: str, overrides: list[str] | None, run: str | None, allocation: Allocation
) -> str:
    """The text of the script.

    Args:
        what, overrides, run: as for `compose`.
    Raises: UserError for keys that the job would refuse, and for a batch that cannot be shared out
        among its processes.
    """
    config = compose(what, overrides, run).config
    check_start(config)
    processes = allocation.nodes * allocation.gpus
    check_shares(config.batch_size, processes, config.accumulate)
    if config.weights is None and config.teacher.weights is None:  # else the job hashes files first
        same = config.model_copy(update={"extend": False})
        is_claimed(Path(str(config.run)), same, config.extend)
    keys = [key for key in overrides or [] if not key.startswith("run=")]
    values = _values(config, ["pretrain", what, *keys, key_value("run", config.run)], allocation)
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], TEMPLATE.read_text("utf-8"))


def _values(config: RunConfig, words: list[str], allocation: Allocation) -> dict[str, str]:
    """What stands for each @NAME@ of the template.

    Args:
        words: of the command, after its name.
    """
    python = [sys.executable, "-uP"]  # -P: the current folder holds no modules
    command = [*python, "-m", "selfsight", *words]
    name = re.sub(r"[^\w.-]+", "-", Path(str(config.run)).name, flags=re.ASCII)
    return {
        "VERSION": __version__,
        "OPTIONS": allocation.options(name, config.device),
        "BEFORE": str(allocation.before),
        "CPUS": str(allocation.cpus),
        "GPUS": str(allocation.gpus),
        "FOLDER": shlex.quote(str(Path.cwd())),
        "RUN": shlex.quote(str(config.run)),
        "PYTHON": shlex.join(python),
        "COMMAND": shlex.join(word.replace("$", "$$") for word in command),  # torch replaces ${...}
    }
