"""A run on processes that die, or on another number of processes after each stop, is the same run:
the images of each step, the random layers and the weights."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from selfsight.batch import Batch
from selfsight.logging.log import read_metrics
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import compose
from selfsight.pretraining.images import training_images
from selfsight.train import engine
from selfsight.train.loader import make_loader
from tests.conftest import TINY, TINY_VIT, heads
from tests.processes import elastic, environment, in_ranks, two_ranks

CPU = torch.device("cpu")
OPTIONS = {**TINY_VIT, "global_pool": "avg", "proj_drop_rate": 0.2, "attn_drop_rate": 0.2}
KEYS = [
    *TINY[4:],  # all but those of its ResNet
    *heads("moco_v2"),
    "backbone={name: vit_tiny_patch16_224, small_images: false, patch_size: 4, drop_path: 0.4}",
    f"backbone.options={json.dumps(OPTIONS)}",
    "precision=fp32",
    "compile=false",
    "batch_size=48",
    "epochs=5",
    "checkpoint={every_epochs: 0, every_steps: 3}",
]


# Killed ranks under torchrun's agent --------------------------------------------------------------


def children(pid: int) -> set[int]:
    """The processes that a process has started."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def kill_ranks(
    agent: int, is_running: Callable[[], bool], run: Path, kills: int, seed: int = 0
) -> None:
    """SIGKILL to a random rank at random moments, each time after both have been started anew."""
    moments, metrics = random.Random(seed), run / "metrics.jsonl"
    for number in range(kills):
        target = len(read_metrics(metrics)) + moments.randint(1, 4)
        while len(read_metrics(metrics)) < target:
            assert is_running(), f"the run ended before kill {number + 1}; make it longer"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        ranks = children(agent)
        assert len(ranks) == 2
        os.kill(moments.choice(sorted(ranks)), signal.SIGKILL)
        while is_running() and (len(children(agent)) < 2 or children(agent) & ranks):
            time.sleep(0.02)


def check_same(folder: Path, steps: int) -> None:
    whole, pieces = (folder / name for name in ("whole", "killed"))
    encoders = [(run / "encoder.safetensors").read_bytes() for run in (whole, pieces)]
    assert encoders[0] == encoders[1]
    assert [r["step"] for r in read_metrics(pieces / "metrics.jsonl")] == [*range(1, steps + 1)]
    losses = [[r["loss"] for r in read_metrics(run / "metrics.jsonl")] for run in (whole, pieces)]
    assert losses[0] == losses[1]
    lines = (pieces / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == steps  # none is damaged, either


def whole(folder: Path, *command: str) -> None:
    done = two_ranks(*command, "--run", "whole", cwd=folder, OMP_NUM_THREADS="1")
    assert [d.returncode for d in done] == [0, 0], done[0].stderr


def test_a_killed_rank_is_started_again_with_the_others(tmp_path):
    command = ["pretrain", "digits/moco_v2", *KEYS, "max_steps=12"]
    agent = elastic(1, *command, "--run", "killed", cwd=tmp_path)
    kill_ranks(agent.pid, agent.is_alive, tmp_path / "killed", 1)
    agent.join(120)
    assert agent.exitcode == 0, (tmp_path / "stderr").read_text()
    assert "Continuing after step" in (tmp_path / "stderr").read_text()
    whole(tmp_path, *command)
    check_same(tmp_path, 12)


@pytest.mark.slow
def test_ten_kills_under_torchrun(tmp_path):
    command = ["pretrain", "digits/moco_v2", *KEYS, "max_steps=60"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=10"]
    words = [sys.executable, "-m", *torchrun, "-m", "selfsight", *command, "run=killed"]
    with (tmp_path / "stderr").open("w") as log:
        agent = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=log)
        is_running = lambda: agent.poll() is None  # noqa: E731
        kill_ranks(agent.pid, is_running, tmp_path / "killed", 10)
        assert agent.wait(300) == 0, (tmp_path / "stderr").read_text()
    assert (tmp_path / "stderr").read_text().count("Continuing after step") >= 8
    whole(tmp_path, *command)
    check_same(tmp_path, 60)


# Another number of ranks after each stop ----------------------------------------------------------


class Stop(Exception):
    """The end of a part of a run."""


class Doubles:
    """A loader whose views are in float64, up to a step.

    Attributes:
        seen: of each step the indices of this rank's images, and its views.
    """

    def __init__(self, loader: Any, until: int) -> None:
        self._loader, self._until = loader, until
        self.seen: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def steps(self, start: int, stop: int, *events: Any) -> Iterator[list[Batch]]:
        batches = self._loader.steps(start, min(stop, self._until), *events)
        for step, (batch,) in enumerate(batches, start):
            self.seen[step] = (batch.index, batch.views)
            yield [dataclasses.replace(batch, views=[view.double() for view in batch.views])]
        if self._until < stop:
            raise Stop


def part_of_a_run(rank: int, world: int, folder: str, until: int, by_rank: bool = False) -> None:
    """Train up to a step, from where the folder's run is.

    Args:
        by_rank: random layers draw from torch's generator, as before they followed the images.
    """
    torch.set_num_threads(1)
    follow = engine.follow_images if not by_rank else lambda method, encoder: None
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet{until}", rank=rank, world_size=world
        )
    keys = [*KEYS, "max_steps=10", "checkpoint.every_steps=1", f"run={folder}"]
    config = compose("digits/moco_v2", [*keys, "optimizer={name: sgd, lr: 0.5}"]).config
    images = training_images(config, CPU, Path(folder) / "bad.txt")
    loader = Doubles(make_loader(config, images), until)
    method = build_method(config, images).double()
    with mock.patch.object(engine, "follow_images", follow), contextlib.suppress(Stop):
        engine.fit(method, loader, config, Path(folder), CPU, quiet=True)
    torch.save(loader.seen, f"{folder}/seen-{until}-{rank}.pt")
    torch.save(method.state_dict(), f"{folder}/state-{until}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def in_parts(folder: Path, *parts: tuple[int, int], by_rank: bool = False) -> dict[str, Any]:
    """The state at the end of a run of (processes, up to step), the same on all its ranks."""
    folder.mkdir()
    for world, until in parts:
        if world == 1:
            part_of_a_run(0, 1, str(folder), until, by_rank)
        else:
            in_ranks(part_of_a_run, str(folder), until, by_rank, world=world)
    states = [torch.load(folder / f"state-{until}-{rank}.pt") for rank in range(world)]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)
    return states[0]


def seen(folder: Path, *parts: tuple[int, int]) -> dict[int, str]:
    """A hash of the images and views of each step, in the order of the ranks."""
    found = {}
    for world, until in parts:
        ranks = [torch.load(folder / f"seen-{until}-{rank}.pt") for rank in range(world)]
        for step in ranks[0]:
            content = hashlib.sha256()
            for place in range(3):
                of = lambda pair, n=place: pair[0] if n == 0 else pair[1][n - 1]  # noqa: E731
                content.update(torch.cat([of(r[step]) for r in ranks]).numpy().tobytes())
            found[step] = content.hexdigest()
    return found


def test_1_2_1_3_ranks_are_the_run_of_one(tmp_path):
    parts = [(1, 2), (2, 4), (1, 7), (3, 10)]
    one = in_parts(tmp_path / "one", (1, 10))
    many = in_parts(tmp_path / "many", *parts)
    images = seen(tmp_path / "one", (1, 10))
    assert sorted(images) == list(range(10))
    assert seen(tmp_path / "many", *parts) == images
    assert len(set(images.values())) == 10
    for key, value in one.items():
        torch.testing.assert_close(many[key], value, rtol=1e-9, atol=1e-9, msg=key)
    steps = [r["step"] for r in read_metrics(tmp_path / "many" / "metrics.jsonl")]
    assert steps == list(range(1, 11))


def test_random_layers_of_the_rank_are_another_run(tmp_path):
    """The control of the test above."""
    one = in_parts(tmp_path / "one", (1, 3), by_rank=True)
    two = in_parts(tmp_path / "two", (2, 3), by_rank=True)
    assert max((one[key] - two[key]).abs().max() for key in one if one[key].ndim) > 1e-6
