"""The configuration that every training has: pretraining adds a method, evaluation a classifier."""

import hashlib
import json
from typing import Literal

import yaml
from pydantic import Field, model_validator

from selfsight.config import Config, Tree, added, may_change
from selfsight.data.config import DataConfig
from selfsight.logging.loggers import LogConfig
from selfsight.train.checkpoint import CheckpointConfig
from selfsight.train.optim import OptimizerConfig, ScheduleConfig
from selfsight.train.precision import Precision
from selfsight.views.recipe import ViewGroup, check_channels

NAMED = ("method", "backbone", "optimizer", "schedule")  # sections that a name alone can set


def with_names(layer: Tree) -> Tree:
    """The layer with `method=NAME`, `backbone=NAME`, `optimizer=NAME` and `schedule=NAME` as what
    they are short for: `method.name=NAME`, and so on."""
    short = {key: {"name": layer[key]} for key in NAMED if isinstance(layer.get(key), str)}
    return {**layer, **short}


class TrainConfig(Config):
    """What `fit` and its loader read."""

    seed: int = Field(0, ge=0)
    device: str = may_change("auto")  # cuda, mps or cpu; auto: the first of them that exists
    precision: Precision = "auto"  # bf16 where the hardware multiplies it natively, else fp32
    # torch.compile of the networks; auto: on GPUs
    compile: Literal["auto"] | bool = may_change("auto")
    # that a process waits for another one that gives no sign of life, or in one step; then it ends
    timeout_minutes: float = may_change(30.0, gt=0)
    epochs: int = Field(100, ge=1)
    max_steps: int | None = Field(None, ge=1)  # end earlier; the schedule then ends there, too
    # refuse to start unless a checkpoint at or past this epoch exists
    start_epoch: int = may_change(0, ge=0)
    batch_size: int = Field(256, ge=2)  # images of a step, over all processes and accumulated parts
    accumulate: int = Field(1, ge=1)  # parts of a batch, computed one after the other
    # parts in which the encoder computes a process's images, each once more in the backward pass:
    # one part's activations are in memory at a time, and the loss sees the whole batch
    encoder_parts: int = may_change(1, ge=1)
    # each block of a transformer keeps its input alone, and computes the rest once more in the
    # backward pass: less memory, a third more time
    recompute: bool = may_change(False)
    # weights, gradients and the optimizer's state are split over the processes of the run, which
    # otherwise hold all of them; the encoder must have no batch normalisation
    shard: bool = may_change(False)
    clip_gradient: float | None = Field(None, gt=0)  # largest L2 norm of all gradients together
    # the encoder's batch statistics span all processes; several processes need GPUs for it
    sync_batchnorm: bool = False
    # the fraction of training in which a loaded encoder stays as it is and only the heads learn
    freeze_backbone: float = added(0.0, ge=0, lt=1)
    log_every: int = may_change(10, ge=1)  # steps
    log: LogConfig = may_change(LogConfig())
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = may_change(CheckpointConfig())
    data: DataConfig = DataConfig()
    views: list[ViewGroup] = Field(min_length=1)  # or the name of a preset

    @model_validator(mode="after")
    def _channels(self) -> "TrainConfig":
        check_channels(self.views, self.data.channels)
        return self

    def fingerprint(self) -> str:
        """Six characters: configurations with another identity have others."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    def steps(self, per_epoch: int) -> int:
        """The number of steps of the whole training."""
        steps = self.epochs * per_epoch
        return min(steps, self.max_steps or steps)

    def to_yaml(self) -> str:
        """The text of config.yaml."""
        return yaml.safe_dump(self.tree(), sort_keys=False, allow_unicode=True)
