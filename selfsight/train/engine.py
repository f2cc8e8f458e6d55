"""fit(): the one training loop.

batch -> lr(progress) -> forward -> backward -> after_backward -> step -> after_step -> probe, log,
save
"""

import contextlib
import hashlib
import inspect
import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selfsight import distributed, randomness
from selfsight.batch import Batch
from selfsight.config import Config, Tree
from selfsight.methods.method import Method, Output
from selfsight.train.checkpoint import CheckpointConfig
from selfsight.train.loader import ViewLoader
from selfsight.train.loggers import LogConfig
from selfsight.train.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    lr_factor,
    momentum,
    scaled_lr,
    set_rates,
    weight_decay,
)
from selfsight.train.precision import Precision, pick_precision, prepare
from selfsight.train.probe import OnlineProbe
from selfsight.train.session import Check, Session

# What may differ when a run is continued, since it changes a result by rounding at most.
FREE = ("run", "device", "compile", "log_every", "checkpoint", "start_epoch", "save_as")
FREE += ("log", "weights", "resume", "save_best", "data.workers", "data.max_bad")


class TrainConfig(Config):
    """What the loop itself reads; base of all that a run folder's config.yaml can hold."""

    seed: int = Field(0, ge=0)
    device: str = "auto"  # cuda, mps or cpu; auto takes the first that is there
    precision: Precision = "auto"  # bf16 where the hardware multiplies it natively, else fp32
    compile: Literal["auto"] | bool = "auto"  # torch.compile of the networks; auto: on GPUs
    epochs: int = Field(100, ge=1)
    max_steps: int | None = Field(None, ge=1)  # end earlier; the schedule then ends there, too
    start_epoch: int = Field(0, ge=0)  # epochs that checkpoints here must already have behind them
    batch_size: int = Field(256, ge=2)  # images of a step, over all processes and accumulated parts
    accumulate: int = Field(1, ge=1)  # parts of a batch that go through one after the other
    clip_gradient: float | None = Field(None, gt=0)  # largest L2 norm of all gradients together
    sync_batchnorm: bool = False  # GPUs: batch statistics of the encoder over all processes
    log_every: int = Field(10, ge=1)  # steps
    log: LogConfig = LogConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def tree(self) -> Tree:
        """As plain data: what config.yaml holds."""
        return self.model_dump(mode="json")

    def identity(self) -> Tree:
        """As plain data without what may differ when a run is continued."""
        tree = self.tree()
        for key in FREE:
            *parents, leaf = key.split(".")
            node = tree
            for part in parents:
                node = node.get(part, {})
            node.pop(leaf, None)
        return tree

    def fingerprint(self) -> str:
        """Six letters that another identity does not share."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]


def fit(
    method: Method,
    loader: ViewLoader,
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    *,
    probe: OnlineProbe | None = None,
    check: Check | None = None,
    resume: str | None = None,
    quiet: bool = False,
) -> float:
    """Train to the last step, from the newest checkpoint in the folder, or of the run to resume.

    Returns: seconds of training, those before an interruption included.
    Raises: Interrupted after SIGTERM or Ctrl-C, UserError at a loss that is not finite.
    """
    module = place(method, config, device)
    peak = scaled_lr(config.optimizer, config.batch_size)
    optimizer = build_optimizer(method, config.optimizer, peak, method.constant_lr, method.rate)
    probe = probe.to(device) if probe else None
    session = Session(method, optimizer, loader, config, folder, probe, check, resume)
    steps, epochs = session.steps, session.steps / loader.steps_per_epoch
    trained = [p for p in method.parameters() if p.requires_grad]
    amp = pick_precision(config.precision, device) == "bf16"
    method.train()
    with session.running(quiet):
        for step, parts in enumerate(loader.steps(session.start, steps), session.start):
            progress = (step + 0.5) / steps
            factor = lr_factor(config.schedule, progress, epochs, steps)
            decay = weight_decay(config.optimizer, config.schedule, progress)
            speed = momentum(config.schedule, progress, epochs, steps)
            set_rates(optimizer, peak, factor, decay, speed)
            _seed_layers(config.seed, step)
            output = _forward_backward(module, parts, amp)
            method.after_backward(progress)
            session.guard(step, output.loss)
            if config.clip_gradient:
                nn.utils.clip_grad_norm_(trained, config.clip_gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(progress)
            session.after(step + 1, peak * factor, output, parts[-1].labels)
        session.finish()
    return session.seconds


def place(method: Method, config: TrainConfig, device: torch.device) -> nn.Module:
    """The method on its device, channels last, compiled and wrapped: what `fit` calls."""
    prepare(device)
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    if config.sync_batchnorm:  # in place, the teacher's as well
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    method.to(device=device, memory_format=layout)
    if config.compile is True or (config.compile == "auto" and device.type == "cuda"):
        for network in method.children():
            _compile(network)
    if distributed.world_size() == 1:
        return method
    ids = [device.index] if device.type == "cuda" else None
    # batch statistics stay each rank's own; the argument's name before torch 2.15 is the second
    names = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options = {sync: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(method, device_ids=ids, **options)


def _compile(network: nn.Module) -> None:
    """As a whole; transformers block by block, since methods also run their blocks one by one."""
    lists = (m for name, m in network.named_modules() if name.split(".")[-1] == "blocks")
    for part in [block for blocks in lists for block in blocks] or [network]:
        part.compile()


def _forward_backward(module: nn.Module, parts: list[Batch], amp: bool) -> Output:
    """Gradients of the mean loss over the parts; the last part's output, with the mean loss."""
    losses = []
    for number, batch in enumerate(parts, 1):
        device = batch.views[0].device.type
        wait = number < len(parts) and isinstance(module, DistributedDataParallel)
        with module.no_sync() if wait else contextlib.nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=amp):
                output = module(batch)
            (output.loss / len(parts)).backward()
        losses.append(output.loss.detach())
    embeddings = tuple(z.detach() for z in output.embeddings)
    return Output(torch.stack(losses).mean(), output.features.detach(), embeddings)


def _seed_layers(seed: int, step: int) -> None:
    """Make torch's generator, for dropout and stochastic depth, follow from seed, step, rank."""
    torch.manual_seed(randomness.key(randomness.STEP, seed, step, distributed.rank()) >> 1)
