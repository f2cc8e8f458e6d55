"""Optimizer, parameter groups and learning rate."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.optim import Optimizer

from selfsight import schedules
from selfsight.config import Config, added, near
from selfsight.train.timm_optim import (
    PREFIX,
    build_timm,
    check_rows_of_timm,
    check_timm,
    whole_tensors_only,
)


class OptimizerConfig(Config):
    """How weights are updated. Tensors with under two dimensions (biases, norms) do not decay."""

    # sgd, adamw, lars, lamb, or any optimizer of timm: timm:muon, timm:lion, ...
    name: Literal["sgd", "adamw", "lars", "lamb"] | str = "sgd"
    lr: float = Field(0.03, gt=0)  # the peak learning rate, before lr_scaling
    # none: lr as it is; linear, sqrt: lr is for a batch of 256, times batch_size / 256 or its root
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd, lars
    nesterov: bool = False  # sgd, lars
    betas: tuple[float, float] = (0.9, 0.999)  # adamw, lamb
    trust_coefficient: float = Field(0.001, gt=0)  # lars
    clip_trust: bool = False  # lars: no tensor's rate is above lr, as in LARC
    # a layer of the encoder that is d layers below the heads learns at layer_decay^d of the rate
    layer_decay: float = added(1.0, gt=0, le=1)
    # timm:NAME: further arguments, such as {betas: [0.9, 0.98]}
    options: dict[str, Any] = added({})

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        known = ("sgd", "adamw", "lars", "lamb")
        if name not in known and not name.startswith(PREFIX):
            raise ValueError(
                f"no such optimizer.{near(name, known)} Known: {', '.join(known)}, and timm's as "
                f"timm:NAME"
            )
        return name

    @model_validator(mode="after")
    def _options(self) -> "OptimizerConfig":
        if self.options and not self.name.startswith(PREFIX):
            raise ValueError(f"options={self.options}: only for timm's optimizers, timm:NAME")
        return self

    @model_validator(mode="after")
    def _betas(self) -> "OptimizerConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)}: each must be in [0, 1)")
        return self


class ScheduleConfig(Config):
    """How the learning rate changes."""

    name: Literal["cosine", "constant", "step", "polynomial"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)  # the longer of the two is used
    warmup_start: float = Field(0.0, ge=0, le=1)  # the rate at step 0, as a fraction of lr
    warmup_shape: Literal["linear", "exponential", "cosine"] = "linear"
    final_lr: float = Field(
        0.0, ge=0, le=1
    )  # cosine, polynomial: the last rate, as a fraction of lr
    # cosine, polynomial: final_lr is reached after these epochs, including warm-up (default: all)
    decay_epochs: float | None = Field(None, gt=0)
    power: float = Field(1.0, gt=0)  # polynomial: 1 is a straight line
    milestones: tuple[float, ...] = ()  # step: epochs after which the rate is lowered
    gamma: float = Field(0.1, gt=0, le=1)  # step: the rate is multiplied by this at each milestone
    # weight decay at the end, reached along half a cosine as in DINO (default: it stays constant)
    final_weight_decay: float | None = Field(None, ge=0)
    # (lowest, highest) momentum, or betas[0]: it falls during the warm-up and rises afterwards,
    # along half a cosine each, as in the 1cycle policy (arXiv 1803.09820); default: constant
    momentum_cycle: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _milestones(self) -> "ScheduleConfig":
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones={list(self.milestones)}: with name=step, give the epochs after which "
                f"the rate is lowered; with another schedule, give none"
            )
        return self

    @model_validator(mode="after")
    def _cycle(self) -> "ScheduleConfig":
        low, high = self.momentum_cycle or (0.0, 0.0)
        if not 0 <= low <= high < 1:
            raise ValueError(f"momentum_cycle={[low, high]}: expected 0 <= lowest <= highest < 1")
        return self

    @model_validator(mode="after")
    def _exponential(self) -> "ScheduleConfig":
        if self.warmup_shape == "exponential" and not self.warmup_start:
            raise ValueError(
                "warmup_start=0: an exponential warm-up begins above 0; give a fraction of lr"
            )
        return self


def scaled_lr(config: OptimizerConfig, batch_size: int) -> float:
    """The peak rate: lr, times batch_size / 256 (linear, arXiv 1706.02677) or its square root."""
    ratio = batch_size / 256
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[config.lr_scaling]


def parameter_groups(
    module: nn.Module,
    config: OptimizerConfig,
    constant_lr: tuple[str, ...] = (),
    rate: Callable[[str], float] = lambda name: 1.0,
) -> list[dict]:
    """All trainable parameters, grouped by weight decay, schedule and factor on the rate.

    Without weight decay are tensors with fewer than two dimensions and those that a timm model
    lists in no_weight_decay(). LARS and LAMB adapt the rate of the other tensors only; they do so
    at weight_decay=0, too.

    Args:
        constant_lr: members whose parameters keep the peak rate throughout.
        rate: the factor on the rate of the parameter with this name.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, m in module.named_modules()
        if hasattr(m, "no_weight_decay")
        for name in m.no_weight_decay()
    }
    groups: dict[tuple[bool, bool, float], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = parameter.ndim >= 2 and name not in exempt
        constant = name.startswith(tuple(f"{member}." for member in constant_lr))
        scale = rate(name)
        new = {
            "params": [],
            "lr_scale": scale,
            "weight_decay": config.weight_decay if decay else 0.0,
            "constant_lr": constant,
            "decayed": decay,
        }
        if config.name in ("lars", "lamb"):
            new["always_adapt"] = decay
        elif config.name.startswith(PREFIX):
            new["kind"] = config.name
        groups.setdefault((decay, constant, scale), new)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    module: nn.Module,
    config: OptimizerConfig,
    lr: float,
    constant_lr: tuple[str, ...] = (),
    rate: Callable[[str], float] = lambda name: 1.0,
) -> Optimizer:
    """torch's fused SGD or AdamW, timm's LARS (arXiv 1708.03888) or LAMB (arXiv 1904.00962), or any
    other optimizer of timm.

    Args: see `parameter_groups`.
    """
    groups = parameter_groups(module, config, constant_lr, rate)
    if config.name.startswith(PREFIX):
        return build_timm(config.name, groups, lr, config.options)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True)
    momentum = {"momentum": config.momentum, "nesterov": config.nesterov and config.momentum > 0}
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, **momentum, fused=True)
        # torch's fused SGD fails on tensors of which only some were stepped before, as when a part
        # was frozen; a buffer of zeros gives the first step that a missing one gives
        for parameter in (p for group in groups if config.momentum for p in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    from timm.optim import Lamb, Lars

    if config.name == "lamb":
        # `fit` clips gradients (clip_gradient); timm's LAMB would clip them once more
        return Lamb(groups, lr=lr, betas=config.betas, max_grad_norm=None)
    trust = {"trust_coeff": config.trust_coefficient, "trust_clip": config.clip_trust}
    return Lars(groups, lr=lr, **momentum, **trust)


def check_optimizer(config: OptimizerConfig) -> None:
    """Raises: UserError for an optimizer of timm that a run could not continue exactly with."""
    if config.name.startswith(PREFIX):
        check_timm(config.name, config.options)


def check_rows(config: OptimizerConfig) -> None:
    """Raises: UserError for an optimizer that needs whole tensors, not some rows of each."""
    if config.name.startswith(PREFIX):
        check_rows_of_timm(config.name, config.options)
    elif config.name in ("lars", "lamb"):
        raise whole_tensors_only(config.name)


def lr_factor(config: ScheduleConfig, progress: float, epochs: float, steps: int = 1) -> float:
    """The factor on the peak rate.

    It is continuous at the end of the warm-up, where the cosine of SGDR (arXiv 1608.03983) or the
    polynomial begins at 1.

    Args:
        progress: the part of training that is done, in [0, 1].
        epochs, steps: the length of the whole training.
    """
    warmup = _warmup(config, epochs, steps)
    start = 1.0
    if progress < warmup:
        start = schedules.rise(progress / warmup, config.warmup_start, config.warmup_shape)
    if config.name in ("constant", "step"):
        passed = sum(progress * epochs >= milestone for milestone in config.milestones)
        return start * config.gamma**passed
    if progress < warmup:
        return start
    end = config.decay_epochs / epochs if config.decay_epochs else 1.0
    part = min(1.0, (progress - warmup) / max(1e-12, end - warmup))
    if config.name == "cosine":
        return schedules.cosine(1.0, config.final_lr, part)
    return config.final_lr + (1.0 - config.final_lr) * (1.0 - part) ** config.power


def _warmup(config: ScheduleConfig, epochs: float, steps: int) -> float:
    """The progress at which the warm-up ends."""
    return min(1.0, max(config.warmup_epochs / epochs, config.warmup_steps / steps))


def momentum(config: ScheduleConfig, progress: float, epochs: float, steps: int) -> float | None:
    """The momentum at this progress; None without `momentum_cycle`."""
    if config.momentum_cycle is None:
        return None
    low, high = config.momentum_cycle
    warmup = _warmup(config, epochs, steps)
    if progress < warmup:
        return schedules.cosine(high, low, progress / warmup)
    return schedules.cosine(low, high, (progress - warmup) / max(1e-12, 1.0 - warmup))


def weight_decay(config: OptimizerConfig, schedule: ScheduleConfig, progress: float) -> float:
    """The weight decay at this progress."""
    final = schedule.final_weight_decay
    start = config.weight_decay
    return start if final is None else schedules.cosine(start, final, progress)


def set_rates(
    optimizer: Optimizer, peak: float, factor: float, decay: float, momentum: float | None = None
) -> None:
    for group in optimizer.param_groups:
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum
        group["lr"] = peak * group["lr_scale"] * (1.0 if group["constant_lr"] else factor)
        group["weight_decay"] = decay if group["decayed"] else 0.0
