"""The bookkeeping around the loop: resume, stop at a loss that is not finite, evaluate, log, save
checkpoints, react to signals."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsight import agreement, distributed
from selfsight.errors import UserError
from selfsight.files import write_json
from selfsight.logging.log import MetricsFile, TrainingProgress, console
from selfsight.logging.loggers import LogConfig, Logger, open_loggers
from selfsight.methods.method import Method, Output
from selfsight.train.checkpoint import Checkpoints, Part, misfit
from selfsight.train.collapse import CollapseMonitor
from selfsight.train.config import TrainConfig
from selfsight.train.cost import write_cost
from selfsight.train.events import SILENT, Events
from selfsight.train.hooks import Hook, RunState, call_all
from selfsight.train.loader import ViewLoader
from selfsight.train.probe import OnlineProbe
from selfsight.train.replicas import check_replicas
from selfsight.train.requests import Requests
from selfsight.train.resume import fitting, load_optimizer, load_other, place_of
from selfsight.train.sharding import collect, gathered, is_split, own_rows, release, whole
from selfsight.train.signals import Interrupted, caught_signals


class Session:
    """One process's part of a run, from its newest checkpoint on.

    Attributes:
        start: how many steps are already done.
        steps: how many steps the whole run has.
        seconds: of training so far, including those before an interruption.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        loader: ViewLoader,
        config: TrainConfig,
        folder: Path,
        probe: OnlineProbe | None,
        hooks: Sequence[Hook] = (),
        resume: str | None = None,
        events: Events = SILENT,
    ) -> None:
        """Args:
        resume: another run's folder or checkpoint, to continue if this folder has no checkpoint.
        """
        self.method, self.optimizer, self.loader, self.config = method, optimizer, loader, config
        self.folder, self.probe, self.hooks = folder, probe, hooks
        self._events = events
        self.steps = config.steps(loader.steps_per_epoch)
        keep = config.checkpoint.keep
        self.checkpoints = Checkpoints(folder / "checkpoints", keep, console.print)
        self.start, self.seconds = 0, 0.0
        self._monitor = CollapseMonitor(method) if method.remedy else None
        self._device = next(method.parameters()).device
        self._first_bad = torch.full((), -1, dtype=torch.long, device=self._device)
        self._parts: dict[str, Part] = {"method": method, "optimizer": optimizer}
        if probe:
            self._parts |= {"probe": probe, "probe_optimizer": probe.optimizer}
        self._resume(resume)
        self._check_start()
        self._saved_at = time.perf_counter()

    def _resume(self, other_run: str | None) -> None:
        """Load the newest checkpoint of this folder; if it has none, that of the other run. Rank 0
        reads it for all: their disks may hold others, or none."""
        keep = own_rows(self._parts)
        found = agreement.state_by_first(lambda: self._find(other_run), self._device, keep)
        if found is not None:
            step, state, other = found
            with fitting(other) if other else contextlib.nullcontext():
                agreement.by_all(lambda: self._load(step, state))

    def _find(self, other_run: str | None) -> tuple[int, dict[str, Any], str | None] | None:
        """Step, state, and the other run if it is of that."""
        identity = self.config.identity()
        # a whole state may not fit where the rows of a split one do
        device = torch.device("cpu") if is_split(self.method) else self._device
        found = self.checkpoints.load(device, lambda s: misfit(s, self._parts, identity))
        if found is not None:
            return *found, None
        if other_run is not None:
            return *load_other(other_run, self.loader, self.steps, device), other_run
        return None

    def _load(self, start: int, state: dict[str, Any]) -> None:
        self.start, self.seconds = start, state["seconds"]
        for name, part in self._parts.items():
            if name == "optimizer":
                load_optimizer(self.optimizer, state[name])
            elif name in state or not name.startswith("probe"):
                part.load_state_dict(state[name])
        if distributed.rank() == 0:
            console.print(f"Continuing after step {self.start} of {self.steps}", soft_wrap=True)

    def _check_start(self) -> None:
        """A run that `start_epoch` says to continue does not silently start at step 0."""
        epoch = self.config.start_epoch
        if self.start < min(self.steps, epoch * self.loader.steps_per_epoch):
            found = f"its newest one is of step {self.start}" if self.start else "it has none"
            raise UserError(
                f"start_epoch={epoch}: '{self.checkpoints.folder}' holds no checkpoint of that "
                f"epoch or later; {found}. start_epoch=0 starts without one"
            )

    def _save(self, done: int) -> None:
        check_replicas(done, self._parts, self.checkpoints.kept())
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"seconds": self.seconds, "step": done, "config": self.config.identity()}
        state["place"] = place_of(self.loader)
        if self.config.checkpoint.sharded:
            self.checkpoints.save_pieces(done, state)
        else:
            state = gathered(state)
            agreement.by_first(lambda: self.checkpoints.save(done, state))
        self._saved_at = time.perf_counter()

    @contextlib.contextmanager
    def running(self, quiet: bool) -> Iterator["Session"]:
        """Keep the logs open and catch signals while the loop runs."""
        main = distributed.rank() == 0
        self._metrics = MetricsFile(self.folder / "metrics.jsonl", self.start) if main else None
        self._loggers = self._open_loggers() if main else []
        epoch, silent = self.loader.steps_per_epoch, quiet or not main
        self._progress = TrainingProgress(self.steps, epoch, self.start, silent)
        self._since, self._images = time.perf_counter(), 0
        self._seconds_before, self._began = self.seconds, time.perf_counter()
        try:
            with caught_signals() as signals:
                self._requests = Requests(signals)
                yield self
        finally:
            self._progress.close()
            if self._metrics:
                self._metrics.close()
            for logger in self._loggers:
                logger.close()

    def _open_loggers(self) -> list[Logger]:
        asked = self.config.log
        if self.start == self.steps:  # nothing to train: the others would open an empty run
            asked = LogConfig(csv=asked.csv)
        return open_loggers(asked, self.folder, self.start, self.config.tree())

    def finish(self) -> None:
        """Write cost.json, and give the encoder's file the weights of the last step."""
        collect(self.method)
        if distributed.rank() == 0:
            images, trained = self.steps * self.config.batch_size, self.start < self.steps
            write_cost(self.folder, self.seconds, images, self._device, trained)

    def guard(self, step: int, loss: Tensor) -> None:
        """Tell all ranks of a loss that is not finite, of a signal, and that it is time to save.

        A CPU stops at once at a loss that is not finite; a GPU stops at the next log or checkpoint,
        since reading the loss after every step would make it wait.
        """
        save = distributed.rank() == 0 and self._is_time_to_save()
        if save:
            self._saved_at = time.perf_counter()  # GPUs hear of it one step later: it asks once
        loss = self._requests.tell(loss.detach(), save)
        bad = ~torch.isfinite(loss) & (self._first_bad < 0)
        self._first_bad.masked_fill_(bad, step)
        if self._device.type == "cpu":
            self._stop_if_not_finite()

    def _is_time_to_save(self) -> bool:
        minutes = self.config.checkpoint.every_minutes
        return minutes > 0 and time.perf_counter() - self._saved_at >= 60 * minutes

    def _stop_if_not_finite(self) -> None:
        step = int(self._first_bad)
        if step < 0:
            return
        saved, path = self.checkpoints.files(), self.folder / "nonfinite.json"
        if distributed.rank() == 0:
            report = {
                "step": step,
                "epoch": step // self.loader.steps_per_epoch,
                "seed": self.config.seed,
                "images": self.loader.indices(step).tolist(),
                "lr": [group["lr"] for group in self.optimizer.param_groups],
                "last_checkpoint": str(saved[-1][1]) if saved else None,
            }
            write_json(path, report)
        raise UserError(
            f"The loss of step {step} is not finite; {self.checkpoints.kept()}. The step's images "
            f"and seed are in {path}. Try a lower optimizer.lr, more schedule.warmup_epochs, "
            f"clip_gradient=1 or precision=fp32"
        )

    def after(self, done: int, lr: float, output: Output, labels: Tensor | None) -> None:
        """After step number `done`: train the probe, evaluate, log, save, stop if a signal came."""
        accuracy = None
        if self.probe and labels is not None:
            accuracy = self.probe.learn(output.features, labels)
        self._images += self.config.batch_size
        last = done == self.steps
        due = [h for h in self.hooks if h.is_due(done, self.steps, self.loader.steps_per_epoch)]
        measured = self._measure(due, done) if due else {}
        # All ranks log at the same steps, since logging averages over them. So this looks at `due`
        # and not at `measured`, which is empty on all ranks but 0.
        log = last or bool(due) or done % self.config.log_every == 0 or done == self.start + 1
        stop, is_time = self._requests.heard()
        if log:
            self._log(done, lr, output, accuracy, measured)
            if self._metrics:
                self._tell(due)
            release(self.method)
        every = self.config.checkpoint
        save = last or is_time or self._is_due(every.every_epochs, done)
        if stop or save or (every.every_steps and done % every.every_steps == 0):
            self._stop_if_not_finite()
            self.seconds = self._seconds_before + time.perf_counter() - self._began
            self._save(done)
        if stop and not last:
            raise Interrupted(stop, done, self.steps)

    def _is_due(self, every: int, done: int) -> bool:
        """Whether what is done every few epochs (0: never) and at the end is due."""
        return every > 0 and (
            done == self.steps or done % (every * self.loader.steps_per_epoch) == 0
        )

    def _measure(self, hooks: list[Hook], done: int) -> dict[str, float]:
        """What the hooks return, on rank 0; {} on others. Their time is left out of images/s."""
        self._events.mark("log, save")
        began = time.perf_counter()
        collect(self.method)
        values = agreement.by_first(lambda: self._measure_alone(hooks, done))
        self._since += time.perf_counter() - began
        self._events.mark("evaluation")
        return values if distributed.rank() == 0 else {}

    def _measure_alone(self, hooks: list[Hook], done: int) -> dict[str, float]:
        epoch = done / self.loader.steps_per_epoch
        method = whole(self.method)
        state = RunState(done, self.steps, epoch, method, self.folder, self._device)
        modes = {part: part.training for part in method.modules()}
        method.eval()
        values = call_all(hooks, state)
        for part, training in modes.items():  # a frozen encoder is in eval mode
            part.training = training
        return values

    def _tell(self, hooks: list[Hook]) -> None:
        """Call what follows the hooks with the record that was logged."""
        for hook in hooks:
            if hook.after:
                hook.after(self._record)

    def _log(
        self, done: int, lr: float, output: Output, accuracy: Tensor | None, measured: dict
    ) -> None:
        self._stop_if_not_finite()
        loss = float(distributed.mean(output.loss.detach()))
        top1 = {} if accuracy is None else {"probe_top1": float(distributed.mean(accuracy))}
        watched = self._metrics is not None and self._monitor is not None
        seen = self._monitor.measure(output) if watched else {}
        now = time.perf_counter()
        record = {
            "step": done,
            "epoch": round(done / self.loader.steps_per_epoch, 4),
            "loss": loss,
            "lr": lr,
            "images_per_second": round(self._images / max(1e-9, now - self._since), 2),
            "seconds": round(self._seconds_before + now - self._began, 3),
            **seen,
            **top1,
            **measured,
        }
        self._since, self._images = now, 0
        if self._metrics:
            record = {k: v if math.isfinite(v) else None for k, v in record.items()}
            self._metrics.write(record)
            for logger in self._loggers:
                logger.write(record)
            self._record = record
        self._progress.record(done, record)
        collapse = self._monitor.verdict(seen) if seen else None
        if collapse:
            console.print(f"Step {done}: {collapse}", soft_wrap=True)
