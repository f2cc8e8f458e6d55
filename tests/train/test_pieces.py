"""One kind of checkpoint for one process, several, and split weights; a file for each process."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from selfsight import files
from selfsight.errors import UserError
from selfsight.pretraining.job import assemble
from selfsight.train import checkpoint, pieces
from selfsight.train.checkpoint import Checkpoints, load_from
from selfsight.train.engine import fit
from tests.conftest import TINY, heads
from tests.processes import in_ranks
from tests.train.test_train import config_of

CPU = torch.device("cpu")
# processes, and keys; the last writes a folder
ENGINES = {
    "one": (1, []),
    "ddp": (2, []),
    "split over 2": (2, ["shard=true"]),
    "split over 3": (3, ["shard=true", "checkpoint.sharded=true"]),
}
STEPS = 2


def doubled(method: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    (batch,) = inputs
    batch.views[:] = [view.double() for view in batch.views]


def train(folder: Path, engine: str) -> None:
    """A run in float64 with a teacher, centres, and clipped gradients."""
    keys = [*TINY, "batch_size=12", f"max_steps={STEPS}", "clip_gradient=0.5", *ENGINES[engine][1]]
    keys += ["checkpoint.every_epochs=0", "checkpoint.every_steps=1", "evaluate.probe=false"]
    config = config_of(folder, *keys, *heads("ibot"), method="ibot")
    job = assemble(config, CPU)
    job.method.double().register_forward_pre_hook(doubled)
    fit(**job.arguments(), quiet=True)


def begin(rank: int, world: int, folder: str) -> None:
    """Each engine of this number of processes trains from the start."""
    joined(rank, world, folder, "begin")
    for engine, (count, _) in ENGINES.items():
        if count == world:
            train(Path(folder) / engine, engine)


def go_on(rank: int, world: int, folder: str) -> None:
    """Each engine of this number of processes continues what each engine has begun."""
    joined(rank, world, folder, "go on")
    for engine, (count, _) in ENGINES.items():
        for other in ENGINES if count == world else ():
            train(Path(folder) / f"{other}, then {engine}", engine)


def joined(rank: int, world: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        where = f"file://{folder}/meet {what} {world}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    for work in (begin, go_on):
        work(0, 1, str(folder))
        for count in (2, 3):
            in_ranks(work, str(folder), count=count)
        for engine in ENGINES if work is begin else ():
            (half, file), _ = Checkpoints(folder / engine / "checkpoints").files()
            assert half == STEPS // 2
            for after in ENGINES:
                target = folder / f"{engine}, then {after}" / "checkpoints" / file.name
                copy = shutil.copytree if file.is_dir() else shutil.copy
                target.parent.mkdir(parents=True)
                copy(file, target)
    return folder


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, item in value.items() for k, v in leaves(item, f"{path}/{key}").items()}


@pytest.mark.parametrize("after", ENGINES)
@pytest.mark.parametrize("before", ENGINES)
def test_every_engine_continues_every_other(before, after, runs):
    """After the same steps the state is that of one process: network, teacher, centres and
    momenta."""
    step, state = load_from(str(runs / f"{before}, then {after}"), CPU)
    wanted_step, wanted = load_from(str(runs / "one"), CPU)
    assert (step, wanted_step) == (STEPS, STEPS)
    found, wanted = leaves(state), leaves(wanted)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=2e-8, msg=key)
        elif key != "/seconds":
            assert found[key] == value, key
