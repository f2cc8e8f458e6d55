"""Files in place of checkpoints that this run did not write."""

import hashlib
import math
import os
import re
import shutil
from typing import Any

import pytest
import torch

from selfsight.pretraining import job as jobs
from selfsight.train.checkpoint import misfit
from tests.train.test_train import CPU, config_of, store, weights


def put(checkpoints, what: str, step: int = 9):
    """In place of a checkpoint, under a right name, something else."""
    folder = checkpoints.folder
    path = folder / f"step-{step:08d}.0123456789abcdef.pt"
    if what == "a folder":
        (path / "in").mkdir(parents=True)
    elif what == "a pipe":
        os.mkfifo(path)
    elif what.startswith("a link to "):
        path.symlink_to(what.removeprefix("a link to "))
    else:
        data = {"nothing": b"", "garbage": bytes(range(256)) * 9, "a zip": b"PK\3\4" + bytes(99)}
        if what in data:
            path.write_bytes(data[what])
        else:
            value = {"a list": [1], "a number": 1, "odd names": {1: 2}, "step": {"step": 8}}[what]
            torch.save(value, path)
        name = f"step-{step:08d}.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"
        path = path.rename(folder / name)
    return path


WRONG = ["a folder", "a pipe", "a link to /nowhere", "a link to /dev/zero", "nothing", "garbage"]
WRONG += ["a zip", "a list", "a number", "odd names", "step"]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_checkpoint_gives_way_to_the_one_before(tmp_path, what):
    checkpoints, said = store(tmp_path)
    checkpoints.save(1, {"x": 1})
    path = put(checkpoints, what)
    assert checkpoints.load(CPU) == (1, {"x": 1})
    assert len(said) == 1
    assert "\n" not in said[0]
    assert os.path.lexists(f"{path}.damaged")
    checkpoints.save(2, {"x": 2})


class Parts:
    """A small method with its optimizer, after two steps, as a session saves them."""

    def __init__(self, width: int = 4, kind: Any = torch.optim.AdamW, groups: int = 1) -> None:
        net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width))
        every = list(net.parameters())
        optimizer = kind([{"params": every[n::groups]} for n in range(groups)], 0.1)
        for _ in range(2):
            net(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()
        self.parts = {"method": net, "optimizer": optimizer}

    def state(self, **changes):
        state = {name: part.state_dict() for name, part in self.parts.items()}
        return state | {"seconds": 1.0, "config": CONFIG} | changes


CONFIG = {"seed": 0, "epochs": 9, "optimizer": {"lr": 0.1}, "data": {"path": "a"}}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (Parts(width=5).state(), "its method is of another run"),
        (Parts(groups=2).state(), "its optimizer is of another run"),
        (Parts().state(optimizer=None), "its optimizer is of another run"),
        (Parts().state(optimizer=Parts(width=5).state()["optimizer"]), "its optimizer is of"),
        (Parts().state(method={}), "its method is of another run"),
        (Parts().state(method=[1]), "its method is of another run"),
        ({"method": {}, "optimizer": {}}, "how long"),
        (Parts().state(seconds=math.nan), "how long"),
        (Parts().state(config={**CONFIG, "seed": 1}), r"another run \(seed: 1 -> 0\)"),
        (Parts().state(config={**CONFIG, "optimizer": {"lr": 0.2}}), r"optimizer.lr: 0.2 -> 0.1"),
    ],
)
def test_a_state_of_another_run_does_not_fit(state, reason):
    assert re.search(reason, misfit(state, Parts().parts, CONFIG))


@pytest.mark.parametrize(
    "state",
    [
        Parts().state(),
        Parts().state(config=None),  # as earlier versions wrote it
        Parts().state(config={**CONFIG, "epochs": 5, "data": {"path": "b"}, "dropped": 1}),
        Parts().state(config={"seed": 0}),  # a version that had fewer keys
    ],
)
def test_a_state_of_this_run_fits(state):
    assert misfit(state, Parts().parts, CONFIG) is None


def test_a_checkpoint_of_another_seed_gives_way_to_the_one_before(tmp_path):
    """It has every shape of this run's: only what it says of its configuration tells it apart."""
    keys = ["max_steps=6", "checkpoint={every_epochs: 0, every_steps: 2, keep: 3}"]
    for seed in (0, 1):
        jobs.pretrain(config_of(tmp_path / f"{seed}", *keys, f"seed={seed}"), quiet=True)
    run = shutil.copytree(tmp_path / "0", tmp_path / "mixed")
    (newest,), (other,) = (
        list((tmp_path / name / "checkpoints").glob("step-00000006*")) for name in ("mixed", "1")
    )
    newest.unlink()
    (run / "encoder.safetensors").unlink()
    shutil.copy(other, run / "checkpoints")
    jobs.pretrain(config_of(run, *keys, "seed=0"), quiet=True)
    assert (run / "checkpoints" / f"{other.name}.damaged").is_file()
    assert weights(run) == weights(tmp_path / "0")
