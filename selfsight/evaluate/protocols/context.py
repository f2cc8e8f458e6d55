"""What all evaluations share: processes, device, splits, and the records."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from selfsight import __version__, agreement, distributed
from selfsight.batch import ImageSize
from selfsight.config import flatten
from selfsight.encoders.artifact import Network
from selfsight.encoders.backbones import accepts
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import Evaluation
from selfsight.evaluate.protocols.results import VERSIONS, Result, store
from selfsight.evaluate.protocols.splits import Splits, open_splits
from selfsight.evaluate.protocols.target import EvaluationTarget
from selfsight.locks import locked
from selfsight.logging.log import console, read_metrics
from selfsight.train.folder import code
from selfsight.train.precision import pick_device, pick_precision, prepare


@dataclass(frozen=True)
class EvaluationContext:
    """One evaluation under way.

    Attributes:
        amp: whether networks run in bf16.
    """

    target: EvaluationTarget
    config: Any
    device: torch.device
    splits: Splits
    amp: bool

    @property
    def size(self) -> ImageSize:
        """Of what the networks see, in pixels."""
        return self.config.image_size or self.target.encoder.image_size

    def networks(self) -> dict[str, Network]:
        """The networks to measure, by name: the encoder, what it started from, and as it was
        before its first step, had it started at random."""
        found, target = {"encoder": self.target.encoder}, self.target
        if self.config.start and target.start is not None:
            found["start"] = target.start
        if self.config.untrained:
            found["untrained"] = target.untrained
        return found

    @property
    def resize(self) -> Resize:
        """How images are brought to this size."""
        return self.config.resize or self.target.encoder.resize

    def result(
        self,
        protocol: str,
        kind: str,
        evaluated: str,
        metrics: dict[str, float],
        settings: dict[str, Any],
        cost: dict[str, float],
        weights_sha256: str | None,
    ) -> Result:
        """The record of one measurement; for the encoder with the seconds of its pretraining."""
        if evaluated == "encoder" and self.target.home is not None:
            last = self.target.settings.get("step", math.inf)  # of a checkpoint: its own step
            records = read_metrics(self.target.home / "metrics.jsonl")
            seconds = [r["seconds"] for r in records if "seconds" in r and r["step"] <= last]
            if seconds:
                cost = {**cost, "pretrain_seconds": seconds[-1]}
        return Result(
            protocol,
            kind,
            VERSIONS[kind],
            evaluated,
            metrics,
            {**self.target.settings, **self._shown(), **settings},
            self.config.seed,
            {name: round(value, 3) for name, value in cost.items()},
            weights_sha256,
            self.splits.describe(self.config),
            self.splits.overlap,
            __version__,
        )

    def _shown(self) -> dict[str, Any]:
        """What a record says of it, if it is not the usual crop."""
        return {} if self.resize == "crop" else {"resize": self.resize}

    def keep(self, results: list[Result]) -> list[Result]:
        """Store them, by rank 0."""
        agreement.by_first(lambda: self._store(results))
        return results

    def _store(self, results: list[Result]) -> None:
        self.target.folder.mkdir(parents=True, exist_ok=True)
        # Not the lock of a training, which may hold it for days: this one is held for moments.
        with locked(self.target.folder, ".results.lock", wait=True):
            store(self.target.folder, results)


@contextmanager
def open_context(target: EvaluationTarget, config: Evaluation) -> Iterator[EvaluationContext]:
    """Join the other processes if there are some, open the splits, and leave in order."""
    with agreement.joined(pick_device(config.device)) as device:
        prepare(device)
        if target.loaded and distributed.rank() == 0:
            console.print(target.loaded, soft_wrap=True)
        agreement.by_all(
            lambda: check_shape(target, config),
            lambda _: {**dict(flatten(config.identity())), **code()},
        )
        splits = open_splits(config, target, device)
        # with the mean and the std that were measured, if they were
        config = config.model_copy(update={"data": splits.train.config})
        amp = pick_precision(config.precision, device) == "bf16"
        yield EvaluationContext(target, config, device, splits, amp)


def check_shape(target: EvaluationTarget, config: Any) -> None:
    """The encoder takes images of these channels and of this size; transformers are built for
    one."""
    own, size, channels = target.encoder.image_size, config.image_size, target.encoder.channels
    if config.data.channels != channels:
        raise UserError(
            f"data.channels={config.data.channels}: the encoder takes images with {channels}; "
            f"leave it out"
        )
    if size not in (None, own) and not accepts(target.encoder.build(), size, channels):
        name = target.encoder.description["backbone"]["name"]
        raise UserError(f"image_size={size}: {name} was built for {own} pixels; leave it out")
