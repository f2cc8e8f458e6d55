"""Where the time of training goes: some real steps as they are, then some with a stopwatch."""

import contextlib
import math
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from selfsight.errors import UserError
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.job import assemble
from selfsight.processes import Stopped
from selfsight.train.engine import fit
from selfsight.train.events import Events
from selfsight.train.precision import device_name, peak_memory, pick_device
from selfsight.train.signals import Interrupted

WARM_UP = 3  # steps that count for nothing: memory is taken, networks are compiled
# Parts of a step, in its order, and what makes each smaller.
ADVICE = {
    "waiting for data": (
        "images arrive too slowly. Pack them once (`selfsight pack`), raise data.workers on a "
        "machine with more cores, or make fewer or smaller views"
    ),
    "transfer": "crops wait for the way to the device: make fewer or smaller views",
    "views": (
        "augmentations are the limit. Leave out blur and jitter that the method does not need, or "
        "make fewer or smaller views"
    ),
    "forward": (
        "the network is the limit, and faster loading would not help. Take a smaller backbone or "
        "smaller views; on a GPU precision=bf16 and compile=true"
    ),
    "optimizer": "the optimizer is the limit: take a larger batch_size, or sgd instead of lars",
    "teacher": "updates of the teacher are the limit: take a larger batch_size",
    "evaluation": "checks are the limit: raise evaluate.every_epochs or lower evaluate.images",
    "log, save": "bookkeeping is the limit: raise log_every and checkpoint.every_steps",
}
ADVICE["backward"] = ADVICE["forward"]
PARTS = ("waiting for data", "transfer", "views", "forward", "backward", "optimizer", "teacher")
PARTS += ("evaluation", "log, save")


class Enough(Exception):
    """The time of the measurement is over."""


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        rate: images a second of undisturbed steps.
        steps: that the stopwatch ran for.
        seconds: of each part of all these steps, on the main thread, in order.
        decode, crops: seconds that the loading threads worked for them meanwhile.
        workers: loading threads; 0 if images are kept decoded.
        undisturbed: steps that the rate was measured over.
        host, memory: peak of resident memory and of the device's, in MiB; 0 without a device.
    """

    rate: float
    steps: int
    seconds: dict[str, float]
    decode: float
    crops: float
    workers: int
    host: float
    memory: float
    device: str
    undisturbed: int = 0

    @property
    def slowest(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def rate_without(self) -> float:
        """Images a second if the slowest part took no time."""
        total = sum(self.seconds.values())
        left = total - self.seconds[self.slowest]
        return self.rate * total / left if left else float("inf")

    @property
    def advice(self) -> str:
        return ADVICE[self.slowest]


def profile(config: RunConfig, seconds: float, steps: int | None = None) -> Profile:
    """Train for `seconds` in a temporary folder, and measure the parts of a step.

    Args:
        steps: end after so many steps that count, if they take less time.
    Raises: UserError as `run.pretrain` does, and if the training is over after a few steps;
        processes.Stopped after SIGTERM or Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="selfsight-profile-") as folder:
        config = config.model_copy(update={"run": str(Path(folder) / "run")})
        job = assemble(config, pick_device(config.device))
        watch = Stopwatch(config.batch_size, job.device, seconds, steps)
        try:
            with contextlib.suppress(Enough):
                fit(**job.arguments(), quiet=True, events=watch)
        except Interrupted as stop:  # it says how to continue, and nothing is kept here
            raise Stopped(stop.signal_number) from None
        return watch.result(0 if job.images.tensor is not None else job.images.workers)


class Stopwatch(Events):
    """Adds up the time of each part of a step.

    The first half of the time is not disturbed and gives the rate. In the second half the host
    waits for the device at every mark, so that each part has its own time.

    Args:
        batch_size: images of a step.
        seconds: of both halves together, after which `Enough` is raised.
        steps: of both halves together, if they take less time.
    """

    def __init__(
        self, batch_size: int, device: torch.device, seconds: float, steps: int | None = None
    ) -> None:
        self._batch, self._device, self._seconds = batch_size, device, seconds
        self._half = math.inf if steps is None else max(1, steps // 2)
        self._steps, self._rate, self._undisturbed = 0, 0.0, 0
        self._watched = -1  # steps of the second half; -1: it has not begun
        self._last = time.perf_counter()
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._worked, self._lock = {"decode": 0.0, "crops": 0.0}, threading.Lock()

    def result(self, workers: int) -> Profile:
        if self._watched < 1:
            raise UserError(
                "selfsight profile: the training is over after a few steps; raise epochs or lower "
                "--seconds"
            )
        return Profile(
            rate=self._rate,
            undisturbed=self._undisturbed,
            steps=self._watched,
            seconds=self._parts,
            **self._worked,
            workers=workers,
            host=peak_memory(torch.device("cpu")),
            memory=peak_memory(self._device) if self._device.type == "cuda" else 0.0,
            device=device_name(self._device),
        )

    def mark(self, part: str) -> None:
        if self._watched < 0:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._parts[part] += now - self._last
        self._last = now

    def worked(self, kind: str, seconds: float) -> None:
        with self._lock:
            if self._watched >= 0:
                self._worked[kind] += seconds

    def step(self) -> None:
        self._steps += 1
        if self._steps == WARM_UP:
            self._began = time.perf_counter()
        if self._watched >= 0:
            self._watched += 1
        if self._steps <= WARM_UP:
            return
        spent, counted = time.perf_counter() - self._began, self._steps - WARM_UP
        if self._watched < 0 and (spent > self._seconds / 2 or counted >= self._half):
            self._rate, self._undisturbed = counted * self._batch / spent, counted
            self._watched, self._last = 0, time.perf_counter()
        elif self._watched > 0 and (spent > self._seconds or self._watched >= self._half):
            raise Enough
