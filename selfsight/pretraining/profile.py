"""Where the time of training goes: some real steps as they are, then some with a stopwatch."""

import contextlib
import functools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from selfsight.errors import UserError
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.job import Job, assemble
from selfsight.train.precision import device_name, peak_memory, pick_device

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
    """The time is over."""


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        rate: images a second of undisturbed steps.
        steps: that the stopwatch ran for.
        seconds: of each part of all these steps, on the main thread, in order.
        decode, crops: seconds that the loading threads worked for them meanwhile.
        workers: loading threads; 0 if images are kept decoded.
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


def profile(config: RunConfig, seconds: float) -> Profile:
    """Train for so long, in a folder that is removed afterwards.

    Raises: UserError as `run.pretrain` does, and if the training is over after a few steps.
    """
    with tempfile.TemporaryDirectory(prefix="selfsight-profile-") as folder:
        config = config.model_copy(update={"run": str(Path(folder) / "run")})
        job = assemble(config, pick_device(config.device))
        watch = Stopwatch(job, seconds)
        with contextlib.suppress(Enough):
            watch.job.fit(Path(config.run), quiet=True)
        return watch.result()


class Stopwatch:
    """Listens to a job. The time since the last event belongs to the part that the next one ends.

    The first half of the time goes by undisturbed and gives the rate. In the second half the host
    waits for the device at every event, so that each part has its own time.

    Attributes:
        job: the one to run.
    """

    def __init__(self, job: Job, seconds: float) -> None:
        self._device, self._images, self._seconds = job.device, job.images, seconds
        self._batch = job.config.batch_size
        self._steps, self._rate = 0, 0.0
        self._watched = -1  # steps; -1: not yet watching
        self._last, self._last_part = time.perf_counter(), ""
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._worked, self._lock = {"decode": 0.0, "task": 0.0}, threading.Lock()
        method, loader, images = job.method, job.loader, job.images
        method.forward = self._around(method.forward, self._before_forward, "forward")
        method.after_backward = self._around(method.after_backward, "backward", "teacher")
        method.after_step = self._after_step(method.after_step)
        loader.steps = functools.partial(self._pull, loader.steps)
        loader._wait = self._around(loader._wait, None, "waiting for data")
        loader._move = self._around(loader._move, None, "transfer")
        images.decode = self._work("decode", images.decode)
        submit = images.pool.submit
        images.pool.submit = lambda task, *given: submit(self._work("task", task), *given)
        measure = self._around(job.check.measure, "log, save", "evaluation") if job.check else None
        self.job = replace(job, check=job.check and replace(job.check, measure=measure))

    def result(self) -> Profile:
        if self._watched < 1:
            raise UserError(
                "selfsight profile: the training is over after a few steps; raise epochs or lower "
                "--seconds"
            )
        decode, task = self._worked["decode"], self._worked["task"]
        return Profile(
            rate=self._rate,
            steps=self._watched,
            seconds=self._parts,
            decode=decode,
            crops=task - decode if task else 0.0,
            workers=0 if self._images.tensor is not None else self._images.workers,
            host=peak_memory(torch.device("cpu")),
            memory=peak_memory(self._device) if self._device.type == "cuda" else 0.0,
            device=device_name(self._device),
        )

    def _end(self, part: str) -> None:
        """The time since the last event was this part's."""
        if self._watched >= 0:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            now = time.perf_counter()
            self._parts[part] += now - self._last
            self._last = now
        self._last_part = part

    def _before_forward(self) -> str:
        """Of an accumulated step, a later part's forward ends the backward of the one before."""
        return "backward" if self._last_part == "forward" else "log, save"

    def _around(self, call: Callable, before: Callable | str | None, after: str) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                self._end(before if isinstance(before, str) else before())
            value = call(*args, **kwargs)
            self._end(after)
            return value

        return timed

    def _work(self, kind: str, call: Callable) -> Callable:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                with self._lock:
                    if self._watched >= 0:
                        self._worked[kind] += time.perf_counter() - began

        return timed

    def _pull(self, steps: Callable, start: int, stop: int) -> Iterator:
        batches = steps(start, stop)
        while True:
            self._end("log, save")
            try:
                parts = next(batches)
            except StopIteration:
                return
            self._end("views")
            yield parts

    def _after_step(self, call: Callable) -> Callable:
        timed = self._around(call, "optimizer", "teacher")

        def counted(progress: float) -> None:
            timed(progress)
            self._count()

        return counted

    def _count(self) -> None:
        self._steps += 1
        if self._steps == WARM_UP:
            self._began = time.perf_counter()
        if self._watched >= 0:
            self._watched += 1
        if self._steps <= WARM_UP:
            return
        spent = time.perf_counter() - self._began
        if self._watched < 0 and spent > self._seconds / 2:
            self._rate = (self._steps - WARM_UP) * self._batch / spent
            self._watched, self._last = 0, time.perf_counter()
        elif self._watched > 0 and spent > self._seconds:
            raise Enough
