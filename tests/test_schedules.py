"""Schedules: bounded, continuous at the end of the warm-up, never zero at a step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfsight import schedules
from selfsight.train.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    lr_factor,
    momentum,
    scaled_lr,
    set_rates,
)

fractions = st.floats(0, 1)


@st.composite
def schedule_configs(draw) -> ScheduleConfig:
    """Every shape, over 10 epochs of 20 steps."""
    name = draw(st.sampled_from(["cosine", "constant", "step", "polynomial"]))
    shape = draw(st.sampled_from(["linear", "exponential", "cosine"]))
    return ScheduleConfig(
        name=name,
        milestones=(4, 8) if name == "step" else (),
        warmup_epochs=draw(st.floats(0, 10)),
        warmup_steps=draw(st.integers(0, 200)),
        warmup_shape=shape,
        warmup_start=draw(st.floats(0.01 if shape == "exponential" else 0, 1)),
        final_lr=draw(fractions),
        decay_epochs=draw(st.none() | st.floats(0.5, 20)),
        power=draw(st.floats(0.5, 3)),
    )


@given(schedule_configs(), fractions)
def test_bounded(config, progress):
    assert 0 <= lr_factor(config, progress, 10, 200) <= 1 + 1e-12


@given(schedule_configs())
def test_continuous_at_the_end_of_warmup(config):
    warmup = max(config.warmup_epochs / 10, config.warmup_steps / 200)
    if not 0.001 < warmup < 0.999 or config.name == "step":
        return  # steps fall where they are told to
    factor = lr_factor(config, warmup, 10, 200)
    assert lr_factor(config, warmup * (1 - 1e-9), 10, 200) == pytest.approx(factor, abs=1e-5)
    assert factor == pytest.approx(1.0)


def test_warmup_in_steps_or_epochs():
    """One part of the warm-up is one part of it, counted either way; the longer counts."""
    steps = ScheduleConfig(warmup_steps=40)
    epochs = ScheduleConfig(warmup_epochs=2, warmup_steps=10)
    for progress in (0.01, 0.1, 0.19, 0.2, 0.7):
        assert lr_factor(steps, progress, 10, 200) == lr_factor(epochs, progress, 10, 200)
    assert lr_factor(steps, 0.05, 10, 200) == pytest.approx(0.25)


def test_shapes_of_warmup():
    """Half way up: the mean, the geometric mean, half a cosine."""
    for shape, part, expected in (
        ("linear", 0.5, 0.505),
        ("exponential", 0.5, 0.1),
        ("cosine", 0.5, 0.505),
        ("cosine", 0.25, 1 - 0.99 * (1 + math.cos(math.pi / 4)) / 2),
    ):
        config = ScheduleConfig(warmup_epochs=2, warmup_start=0.01, warmup_shape=shape)
        assert lr_factor(config, part * 0.2, 10, 200) == pytest.approx(expected)
    with pytest.raises(ValueError, match="begins above 0"):
        ScheduleConfig(warmup_shape="exponential")


def test_polynomial_and_a_decay_that_ends_elsewhere():
    line = ScheduleConfig(name="polynomial", warmup_epochs=2, final_lr=0.1)
    assert lr_factor(line, 0.6, 10) == pytest.approx(0.55)
    square = ScheduleConfig(name="polynomial", power=2)
    assert lr_factor(square, 0.75, 10) == pytest.approx(0.0625)
    for name in ("cosine", "polynomial"):
        longer = ScheduleConfig(name=name, warmup_epochs=2, decay_epochs=20)
        whole = ScheduleConfig(name=name, warmup_epochs=2)
        assert lr_factor(longer, 0.8, 10) == pytest.approx(lr_factor(whole, 0.4, 20))
        shorter = ScheduleConfig(name=name, decay_epochs=5, final_lr=0.2)
        assert lr_factor(shorter, 0.5, 10) == lr_factor(shorter, 0.9, 10) == pytest.approx(0.2)


def test_cosine_is_the_papers():
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert schedules.cosine(0.996, 1.0, p) == pytest.approx(
            1 - (1 - 0.996) * (math.cos(math.pi * p) + 1) / 2
        )


@given(st.integers(1, 500), st.integers(0, 20))
def test_every_step_trains(steps, warmup_epochs):
    config = ScheduleConfig(warmup_epochs=warmup_epochs)
    factors = [lr_factor(config, (s + 0.5) / steps, 10, steps) for s in range(steps)]
    assert min(factors) > 0
    assert max(factors) <= 1


def test_lr_scaling():
    for rule, expected in (("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)):
        config = OptimizerConfig(lr=0.1, lr_scaling=rule)
        assert scaled_lr(config, 1024) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_cycle_is_torchs(name):
    """Rate and momentum, at torch's moments: step i of n is at i / (n - 1) there."""
    steps, low, high = 101, 0.8, 0.95
    module = torch.nn.Linear(3, 2)
    optimizer = OptimizerConfig(name=name, lr=0.4, momentum=0.9)
    config = ScheduleConfig(
        warmup_epochs=(0.3 * steps - 1) / (steps - 1),  # torch ends its rise at step 0.3 n - 1
        warmup_shape="cosine",
        warmup_start=1 / 25,
        final_lr=1 / 25e4,
        momentum_cycle=(low, high),
    )
    ours, theirs = (build_optimizer(module, optimizer, 0.4) for _ in range(2))
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.4, total_steps=steps, base_momentum=low, max_momentum=high
    )
    for step in range(steps):
        progress = step / (steps - 1)
        factor = lr_factor(config, progress, 1, steps)
        set_rates(ours, 0.4, factor, 0.0, momentum(config, progress, 1, steps))
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert a["lr"] == pytest.approx(b["lr"])
            key = "momentum" if name == "sgd" else "betas"
            assert a[key] == pytest.approx(b[key])
        theirs.step()
        cycle.step()


def test_momentum_stays_unless_it_is_told_to_cycle():
    assert momentum(ScheduleConfig(), 0.5, 10, 100) is None
    with pytest.raises(ValueError, match="0 <= lowest <= highest < 1"):
        ScheduleConfig(momentum_cycle=(0.9, 0.8))
