"""A bit that changes in one process of several is found before anything is saved."""

import os
import re

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.train import engine, session
from selfsight.train.probe import OnlineProbe
from selfsight.train.replicas import COLUMNS, MIX, _whose, check_replicas, digest
from tests.conftest import TINY
from tests.methods.test_methods import batch_of, build
from tests.processes import in_ranks, start_ranks
from tests.test_distributed import part

KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)


def flip(tensor: torch.Tensor, bit: int) -> None:
    """Change one bit of a tensor's numbers."""
    numbers = tensor.detach().view(-1).view(torch.uint8)
    numbers[bit // 8] ^= 1 << (bit % 8)


def drawn(kind: torch.dtype, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (length * kind.itemsize,), dtype=torch.uint8).view(kind)


def as_python_adds(tensor: torch.Tensor) -> int:
    """The number of the bits with whole numbers of any size."""
    data = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
    data += bytes(-len(data) % (8 * COLUMNS) or 8 * COLUMNS)
    total = 0
    for n in range(len(data) // 8):
        i, j = divmod(n, COLUMNS)
        x = int.from_bytes(data[8 * n : 8 * n + 8], "little")
        total += x * (2 * i + 1 + MIX * (2 * j + 1))
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 5000, 20_000])
def test_the_number_is_the_sum_that_the_docstring_says(kind, length):
    tensor = drawn(kind, length)
    assert int(digest(tensor)) == as_python_adds(tensor)
    padded = drawn(kind, length + 3)[3:]  # does not begin at a multiple of 8 bytes
    assert int(digest(padded)) == as_python_adds(padded)


@given(st.sampled_from(KINDS), st.integers(1, 30_000), st.data())
def test_any_single_bit_changes_the_number(kind, length, data):
    tensor = drawn(kind, length)
    before = digest(tensor)
    bit = data.draw(st.integers(0, 8 * length * kind.itemsize - 1))
    flip(tensor, bit)
    assert digest(tensor) != before
    flip(tensor, bit)
    assert digest(tensor) == before


@given(st.integers(2, 30_000), st.data())
def test_two_values_that_change_places_change_the_number(length, data):
    tensor = torch.arange(length, dtype=torch.float64)
    before = digest(tensor)
    i, j = (data.draw(st.integers(0, length - 1)) for _ in range(2))
    tensor[[i, j]] = tensor[[j, i]]
    assert (digest(tensor) == before) == (i == j)


def test_the_processes_that_differ_are_named():
    assert _whose([1], 2) == "the 2 processes differ from one another"
    assert _whose([2], 3) == "process 2 of 3 differs from the others"
    assert _whose([1, 6], 8) == "processes 1, 6 of 8 differ from the others"


# what is changed on one rank -> the parts that are named, or None
CHANGES = {
    "nothing": None,
    "a running mean of the encoder": None,
    "a running mean of the probe": None,
    "a weight of the encoder": "backbone",
    "a weight of the teacher": "teacher",
    "a key of the queue": "queue",
    "a running mean of a head": "projector",
    "an average of the optimizer": "optimizer",
    "a weight of the probe": "probe",
}


def parts_of_a_training(name: str):
    method = build(name)
    method.backbone.norm = torch.nn.BatchNorm1d(4)
    method.train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad])
    method(batch_of(name)).loss.backward()
    optimizer.step()
    return {"method": method, "optimizer": optimizer, "probe": OnlineProbe(8, 3)}


def found(change: str) -> str:
    """What `check_replicas` raises on this rank."""
    parts = parts_of_a_training("nnclr" if "head" in change else "moco_v2")
    method, optimizer = parts["method"], parts["optimizer"]
    state = method.state_dict()
    pick = {
        "a running mean of the encoder": lambda: method.backbone.norm.running_mean,
        "a running mean of the probe": lambda: parts["probe"].norm.running_mean,
        "a weight of the encoder": lambda: next(method.backbone.parameters()),
        "a weight of the teacher": lambda: next(v for k, v in state.items() if "teacher" in k),
        "a key of the queue": lambda: next(v for k, v in state.items() if "queue" in k),
        "a running mean of a head": lambda: next(
            v for k, v in state.items() if k.startswith("projector") and "running_mean" in k
        ),
        "an average of the optimizer": lambda: optimizer.state_dict()["state"][3]["exp_avg_sq"],
        "a weight of the probe": lambda: parts["probe"].linear.bias,
    }
    if change != "nothing" and dist.get_rank() == 1:
        flip(pick[change](), 5)
    return complaint(parts)


def complaint(parts) -> str:
    try:
        check_replicas(7, parts, "the checkpoint of step 6 is kept")
    except UserError as error:
        return str(error) if error.everywhere else "not everywhere"
    return ""


def after_steps(name: str) -> str:
    """What `check_replicas` raises after two steps of a method in two processes."""
    method = build(name)
    method.train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad])
    parallel = DistributedDataParallel(method, broadcast_buffers=False)
    for step in range(2):
        parallel(part(batch_of(name, step=step), dist.get_rank(), 2, torch.float32)).loss.backward()
        method.after_backward(0.5)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.5)
    return complaint({"method": method, "optimizer": optimizer})


def compare(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    said = {change: found(change) for change in CHANGES}
    said |= {name: after_steps(name) for name in METHODS}
    torch.save(said, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_what_is_compared(tmp_path):
    in_ranks(compare, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert {name: first[name] for name in METHODS} == dict.fromkeys(METHODS, "")
    for change, named in CHANGES.items():
        if named is None:
            assert first[change] == "", change
        else:
            about = rf"Step 7: the 2 processes differ from one another in \w*{named}\w*: .*step 6"
            assert re.match(about, first[change]), (change, first[change])


def flip_after_step_5() -> None:
    real = engine._forward_backward

    def forward_backward(module, parts, *others):
        if parts[0].step == 5 and os.environ["RANK"] == "1":
            flip(module.module.backbone.bn1.weight, 17)
        return real(module, parts, *others)

    engine._forward_backward = forward_backward


def flip_unnoticed() -> None:
    flip_after_step_5()
    session.check_replicas = lambda *_: None


COMMAND = ["pretrain", "digits/simclr", *TINY, "max_steps=8", "run=run"]
KEEP = "checkpoint={every_steps: 2, keep: 9}"


def saved(folder) -> list[int]:
    return sorted(int(p.name[5:13]) for p in (folder / "run" / "checkpoints").glob("step-*.pt"))


def in_two(tmp_path, prepare=None):
    ranks = start_ranks([[*COMMAND, KEEP]] * 2, [tmp_path] * 2, prepare, OMP_NUM_THREADS="1")
    return [rank.wait() for rank in ranks]


def test_a_run_with_a_changed_bit_ends_and_goes_on_from_before_it(tmp_path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    first, second = in_two(tmp_path / "broken", flip_after_step_5)
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    last = first.stderr.splitlines()[-1]
    assert last.startswith("selfsight: Step 6: the 2 processes differ from one another in backbone")
    assert "the checkpoint of step 4 is kept" in last
    assert second.stderr == ""
    assert saved(tmp_path / "broken") == [2, 4]
    for name in ("whole", "broken"):
        assert [rank.returncode for rank in in_two(tmp_path / name)] == [0, 0]
    whole, mended = (tmp_path / n / "run" / "encoder.safetensors" for n in ("whole", "broken"))
    assert whole.read_bytes() == mended.read_bytes()
    assert len(read_metrics(tmp_path / "broken" / "run" / "metrics.jsonl")) == 8


def test_without_the_check_a_changed_bit_is_saved(tmp_path):
    assert [rank.returncode for rank in in_two(tmp_path, flip_unnoticed)] == [0, 0]
    assert saved(tmp_path) == [2, 4, 6, 8]
