"""Schedules: bounded, continuous at the end of the warm-up, never zero at a step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit import schedules
from tacit.train.optim import OptimizerConfig, ScheduleConfig, lr_factor, scaled_lr

fractions = st.floats(0, 1)


@given(fractions, fractions, fractions)
def test_bounded(progress, warmup, final):
    assert 0 <= schedules.warmup_cosine(progress, warmup, final) <= 1
    assert 0 <= schedules.warmup_constant(progress, warmup) <= 1


@given(st.floats(0.001, 0.999), fractions)
def test_continuous_at_the_end_of_warmup(warmup, final):
    for shape, more in ((schedules.warmup_cosine, (final,)), (schedules.warmup_constant, ())):
        before = shape(warmup * (1 - 1e-9), warmup, *more)
        assert before == pytest.approx(shape(warmup, warmup, *more), abs=1e-6)
        assert shape(warmup, warmup, *more) == pytest.approx(1.0)


def test_cosine_is_the_papers():
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert schedules.cosine(0.996, 1.0, p) == pytest.approx(
            1 - (1 - 0.996) * (math.cos(math.pi * p) + 1) / 2
        )


@given(st.integers(1, 500), st.integers(0, 20))
def test_every_step_trains(steps, warmup_epochs):
    config = ScheduleConfig(warmup_epochs=warmup_epochs)
    factors = [lr_factor(config, (s + 0.5) / steps, epochs=10) for s in range(steps)]
    assert min(factors) > 0
    assert max(factors) <= 1


def test_lr_scaling():
    for rule, expected in (("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)):
        config = OptimizerConfig(lr=0.1, lr_scaling=rule)
        assert scaled_lr(config, 1024) == pytest.approx(expected)
