"""fit(): the one training loop.

For each step: batch -> lr(progress) -> forward -> backward -> after_backward -> optimizer step ->
after_step -> probe, log, save
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfsight import blame, distributed
from selfsight.batch import Batch
from selfsight.compiler import can_compile
from selfsight.errors import UserError
from selfsight.logging.log import say
from selfsight.methods.method import Method, Output
from selfsight.random_layers import Generators, follow_images
from selfsight.recompute import compute_in_parts, recompute_blocks
from selfsight.train.config import TrainConfig
from selfsight.train.events import SILENT, Events
from selfsight.train.hooks import Hook
from selfsight.train.layers import FrozenBackbone, layer_rates
from selfsight.train.loader import ViewLoader
from selfsight.train.optim import (
    build_optimizer,
    lr_factor,
    momentum,
    scaled_lr,
    set_rates,
    weight_decay,
)
from selfsight.train.precision import pick_precision, prepare
from selfsight.train.probe import OnlineProbe
from selfsight.train.session import Session
from selfsight.train.sharding import check_shard, clip_gradient, shard


def fit(
    method: Method,
    loader: ViewLoader,
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    *,
    probe: OnlineProbe | None = None,
    hooks: Sequence[Hook] = (),
    resume: str | None = None,
    quiet: bool = False,
    events: Events = SILENT,
) -> float:
    """Train to the last step. Start from the newest checkpoint in the folder; if there is none,
    from the checkpoint that `resume` names; else from step 0.

    Returns: seconds of training, including those before an interruption.
    Raises: Interrupted after SIGTERM or Ctrl-C; UserError for a loss that is not finite.
    """
    compute_in_parts(method, method.backbone, config.encoder_parts)
    follow_images(method, method.backbone)
    generators = Generators(config.seed, device, config.accumulate * config.encoder_parts, say)
    if config.recompute:
        recompute_blocks(method, method.backbone)
    amp = pick_precision(config.precision, device) == "bf16"
    split = config.shard and distributed.world_size() > 1
    if split:
        check_shard(method, config.optimizer)
    module = place(method, device, config.compile, config.sync_batchnorm, split, amp)
    peak = scaled_lr(config.optimizer, config.batch_size)
    layers = layer_rates(method.backbone, config.optimizer.layer_decay)
    rate = lambda name: method.rate(name) * layers(name)  # noqa: E731
    optimizer = build_optimizer(method, config.optimizer, peak, method.constant_lr, rate)
    frozen = FrozenBackbone(method, config.freeze_backbone)
    probe = probe.to(device) if probe else None
    session = Session(method, optimizer, loader, config, folder, probe, hooks, resume, events)
    steps, epochs = session.steps, session.steps / loader.steps_per_epoch
    trained = [p for p in method.parameters() if p.requires_grad]
    method.train()
    if session.start == 0 and method.looks_at:
        look = getattr(module, "look", method.look)  # of a split method: with whole weights
        look(first_batches(loader, method.looks_at))
    with session.running(quiet):
        batches = loader.steps(session.start, steps, events)
        for step, parts in enumerate(batches, session.start):
            progress = (step + 0.5) / steps
            factor = lr_factor(config.schedule, progress, epochs, steps)
            decay = weight_decay(config.optimizer, config.schedule, progress)
            speed = momentum(config.schedule, progress, epochs, steps)
            set_rates(optimizer, peak, factor, decay, speed)
            if frozen.changes(progress):
                # it must know which gradients to wait for
                module = in_parallel(method, device, split, amp)
            with generators.step(step):
                output = _forward_backward(module, parts, amp, events)
            method.after_backward(progress)
            events.mark("teacher")
            session.guard(step, output.loss)
            if config.clip_gradient:
                clip_gradient(trained, config.clip_gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            events.mark("optimizer")
            method.after_step(progress)
            events.mark("teacher")
            events.step()
            session.after(step + 1, peak * factor, output, parts[-1].labels)
        session.finish()
    return session.seconds


def first_batches(loader: ViewLoader, images: int) -> Iterator[Batch]:
    """The batches of the first steps with this many images, at most an epoch."""
    steps = min(loader.steps_per_epoch, -(-images // loader.batch_size))
    for parts in loader.steps(0, steps):
        yield from parts


def place(
    method: Method,
    device: torch.device,
    compile: Literal["auto"] | bool = "auto",
    sync_batchnorm: bool = False,
    split: bool = False,
    amp: bool = False,
) -> nn.Module:
    """The module that `fit` calls: the method on its device, compiled, and with several processes
    inside DistributedDataParallel, or with its weights split over them.

    Args:
        amp: the forward pass is computed in bfloat16.
    Raises: UserError, see `check_sync_batchnorm` and `shard`.
    """
    prepare(device)
    check_sync_batchnorm(sync_batchnorm, device)
    if (
        sync_batchnorm and distributed.world_size() > 1
    ):  # changes the method itself, its teacher too
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    # channels_last is the fast layout of convolutions, except on MPS, where torch's have been slow
    # with it and at times wrong.
    layout = torch.preserve_format if device.type == "mps" else torch.channels_last
    layout = torch.contiguous_format if split else layout  # fully_shard takes no other
    method.to(device=device, memory_format=layout)
    wanted = compile is True or (compile == "auto" and device.type == "cuda")
    if wanted and can_compile(device.type):
        for network in method.children():
            _compile(network)
    return in_parallel(method, device, split, amp)


def in_parallel(
    method: Method, device: torch.device, split: bool = False, amp: bool = False
) -> nn.Module:
    """The method; with several processes inside DistributedDataParallel, or split. Args: as of
    `place`."""
    if distributed.world_size() == 1:
        return method
    if split:
        return shard(method, device, amp)
    ids = [device.index] if device.type == "cuda" else None
    # Each process keeps its own running statistics: they are not copied from rank 0. The argument
    # that says so is called broadcast_buffers before torch 2.15.
    names = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options = {sync: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(method, device_ids=ids, **options)


def check_sync_batchnorm(sync_batchnorm: bool, device: torch.device) -> None:
    """Raises: UserError for several processes that are not on GPUs. One process runs anywhere: its
    batch normalisation sees the whole batch as it is."""
    count = distributed.world_size()
    if sync_batchnorm and count > 1 and device.type != "cuda":
        raise UserError(
            f"sync_batchnorm=true: torch's SyncBatchNorm works on GPUs only, and these {count} "
            f"processes run on device={device.type}; set sync_batchnorm=false, or start one process"
        )


def _compile(network: nn.Module) -> None:
    """Compile a network as a whole, but a transformer block by block: methods call its blocks one
    by one."""
    lists = (m for name, m in network.named_modules() if name.split(".")[-1] == "blocks")
    for part in [block for blocks in lists for block in blocks] or [network]:
        part.compile()


def _forward_backward(
    module: nn.Module, parts: list[Batch], amp: bool, events: Events = SILENT
) -> Output:
    """Compute the gradients of the mean loss over the parts of a batch.

    Returns: the last part's features and embeddings, with the mean loss.
    """
    losses = []
    for number, batch in enumerate(parts, 1):
        device = batch.views[0].device.type
        wait = number < len(parts) and isinstance(module, DistributedDataParallel)
        with module.no_sync() if wait else contextlib.nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=amp):
                output = module(batch)
            _check(output, batch, module)
            events.mark("forward")
            (output.loss / len(parts)).backward()
            events.mark("backward")
        losses.append(output.loss.detach())
    embeddings = tuple(z.detach() for z in output.embeddings)
    return Output(torch.stack(losses).mean(), output.features.detach(), embeddings)


def _check(output: Any, batch: Batch, module: nn.Module) -> None:
    """Raises: UserError for what `forward` of a method must not return."""
    method = getattr(module, "module", module)  # inside DistributedDataParallel or Sharded
    right = (len(batch.views[0]), method.backbone.num_features)
    if not isinstance(output, Output):
        found, wanted = _kind(output), "return Output(loss, features)"
    elif getattr(output.loss, "shape", None) != () or not output.loss.requires_grad:
        found = f"{_kind(output.loss)} as loss"
        wanted = "it is the mean over the images, a tensor () with a gradient"
    elif getattr(output.features, "shape", None) != right:
        found = f"{_kind(output.features)} as features"
        wanted = f"they are the encoder's features of a view, a tensor {right}"
    else:
        return
    raise UserError(f"{blame.named(method)}: forward returned {found}; {wanted}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
