"""`selfsight profile`: parts of the time that add up; training is the same as without it."""

import math
import os
import signal
import time

import pytest
import torch

from selfsight.errors import UserError
from selfsight.pretraining.config import compose
from selfsight.pretraining.job import assemble
from selfsight.pretraining.profile import ADVICE, PARTS, Profile, Stopwatch, profile
from selfsight.train import engine
from selfsight.train.engine import fit
from selfsight.train.events import SILENT

KEYS = ["device=cpu", "batch_size=32", "data.limit=256", "log_every=1"]


def config(*keys: str, run: str | None = None):
    return compose("digits/byol", [*KEYS, *keys], run).config


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_parts_add_up(in_memory):
    began = time.perf_counter()
    found = profile(config(f"data.in_memory={in_memory}"), 1.2)
    wall = time.perf_counter() - began
    assert list(found.seconds) == list(PARTS)
    total = sum(found.seconds.values())
    assert 0 < total < wall
    # what was not watched: imports, the first half of the time, the steps before it
    assert all(found.seconds[part] > 0 for part in ("views", "forward", "backward", "optimizer"))
    assert found.steps >= 1
    assert found.rate > 0
    threaded = in_memory == "false"
    assert (found.workers > 0) == threaded
    assert (found.seconds["waiting for data"] > 0) == threaded
    assert (found.decode > 0) == (found.crops > 0) == threaded
    assert found.rate_without > found.rate


def test_a_slow_part_is_found(monkeypatch):
    def slow(*args, **kwargs):
        time.sleep(0.3)
        return whole(*args, **kwargs)

    import selfsight.train.loader as loader

    whole = loader.make_views
    monkeypatch.setattr(loader, "make_views", slow)
    found = profile(config("batch_size=8"), 1.5)
    assert found.slowest == "views"
    assert found.seconds["views"] / found.steps > 0.3
    assert found.advice == ADVICE["views"]


def test_training_is_not_changed(tmp_path):
    """The weights are those of a run without a stopwatch."""
    weights = []
    for name in ("with", "without"):
        keys = config("max_steps=6", run=str(tmp_path / name))
        job = assemble(keys, torch.device("cpu"))
        watch = Stopwatch(keys.batch_size, job.device, 1e9) if name == "with" else SILENT
        fit(**job.arguments(), quiet=True, events=watch)
        weights.append(job.method.state_dict())
    a, b = weights
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_rate_without_the_slowest():
    seconds = dict.fromkeys(PARTS, 0.0) | {"forward": 1.0, "backward": 3.0}
    found = Profile(100.0, 10, seconds, 0.0, 0.0, 0, 1.0, 0.0, "cpu")
    assert found.slowest == "backward"
    assert found.rate_without == 400.0
    alone = Profile(100.0, 10, {"forward": 1.0}, 0.0, 0.0, 0, 1.0, 0.0, "cpu")
    assert math.isinf(alone.rate_without)
    assert set(ADVICE) == set(PARTS)


def test_a_number_of_steps_ends_it():
    found = profile(config(), 1e9, 4)
    assert (found.undisturbed, found.steps) == (2, 2)
    assert found.rate > 0


def test_a_signal_ends_it_in_one_line(tmp_path, command, monkeypatch):
    forward_backward = engine._forward_backward

    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return forward_backward(*arguments)

    monkeypatch.setattr(engine, "_forward_backward", stop)
    done = command("profile", "digits/simclr", *KEYS, cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGTERM
    (line,) = done.stderr.splitlines()
    assert "stopped by SIGTERM" in line


def test_too_short_a_training():
    with pytest.raises(UserError, match="over after a few steps"):
        profile(config("max_steps=2"), 5.0)


def test_the_command_keeps_nothing(tmp_path, command):
    done = command("profile", "digits/simclr", *KEYS, "--seconds", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (*PARTS, "images/s", "Peak memory", "Slowest: "):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []
