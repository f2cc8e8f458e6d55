"""shard=true: the same numbers as one process and as DistributedDataParallel, with a part of the
memory; what cannot be split is refused."""

import dataclasses
import functools
from collections.abc import Iterable
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from selfsight import distributed
from selfsight.methods import METHODS
from selfsight.methods.method import Batch
from selfsight.recompute import compute_in_parts, recompute_blocks
from selfsight.train.engine import in_parallel
from selfsight.train.optim import OptimizerConfig
from selfsight.train.sharding import clip_gradient
from tests.methods.test_methods import batch_of, build
from tests.processes import in_ranks

CPU = torch.device("cpu")
ADAMW = OptimizerConfig(name="adamw", lr=1e-3)


whole_batch = functools.cache(batch_of)


def rows_of(name: str, double: bool) -> Batch:
    """This rank's part of a batch."""
    batch = whole_batch(name)
    n = len(batch.labels) // distributed.world_size()
    rows = slice(distributed.rank() * n, (distributed.rank() + 1) * n)
    at = dataclasses.replace(batch.keys, index=batch.keys.index[rows])
    views = [view[rows].to(torch.double if double else torch.float) for view in batch.views]
    return Batch(views, batch.labels[rows], at, batch.step)


def values(tensors: Iterable[tuple[str, Tensor | None]], what: str) -> dict[str, Tensor]:
    """Of what is split this rank's rows."""
    return {
        f"{what} {key}": (value.to_local() if isinstance(value, DTensor) else value).clone()
        for key, value in tensors
        if value is not None
    }


def assert_rows(found: dict[str, Tensor], wanted: dict[str, Tensor], rank: int, **near) -> None:
    """What two ranks hold of the same values.

    Args:
        near: tolerances; without one they must be equal bit for bit.
    """
    assert found.keys() == wanted.keys()
    assert any(key.startswith("gradient") for key in found)
    for key, value in wanted.items():
        if found[key].shape != value.shape:
            rows = -(-len(value) // 2)
            value = value[rows * rank :][:rows]
        torch.testing.assert_close(found[key], value, **(near or {"rtol": 0, "atol": 0}), msg=lambda text, key=key: f"{key}: {text}")


def one_step(name: str, split: bool, double: bool = True, amp: bool = False, **how) -> dict:
    """Loss, gradients and the state after one step.

    Args:
        how: `parts` of the encoder, whether to `recompute`, and `clip` the gradients at a norm.
    """
    method = build(name, vit=True)
    method = method.double() if double else method
    compute_in_parts(method, method.backbone, how.get("parts", 1))
    if how.get("recompute"):
        recompute_blocks(method, method.backbone)
    module = in_parallel(method, CPU, split, amp)
    batch = rows_of(name, double)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = module(batch).loss
    loss.backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    if "clip" in how:
        clip_gradient(trained, how["clip"])
    gradients = values(((key, p.grad) for key, p in method.named_parameters()), "gradient")
    torch.optim.SGD(trained, 0.1).step()
    method.after_step(0.5)
    loss = {"loss": distributed.mean(loss.detach())}
    return {**loss, **gradients, **values(method.state_dict().items(), "state")}


# What is compared with DistributedDataParallel, beside every method in float64.
CASES = {
    **{f"{name} in fp32": (name, {"double": False}) for name in ("dino", "swav")},
    **{f"{name} in bf16": (name, {"double": False, "amp": True}) for name in ("dino", "mae")},
    **{f"{name} in parts": (name, {"parts": 2}) for name in ("dino", "ijepa")},
    **{f"{name} recomputed": (name, {"recompute": True}) for name in ("dino", "mae")},
    "ijepa, parts recomputed": ("ijepa", {"recompute": True, "parts": 2}),
    "dino, clipped": ("dino", {"clip": 0.01}),
    **{name: (name, {}) for name in METHODS},
}


def compare(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    results = {}
    for case, (name, how) in CASES.items():
        results[case] = [one_step(name, split, **how) for split in (False, True)]
    FSDPModule.set_force_sum_reduction_for_comms = lambda *_: None
    control = "equal"
    try:
        assert_rows(one_step("swav", True, double=False), results["swav in fp32"][0], rank)
    except (AssertionError, RuntimeError, ValueError) as error:
        control = f"{type(error).__name__}: {error}"
    torch.save((results, control), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(compare, str(folder))
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_a_split_method_equals_one_that_is_not_bit_for_bit(case, found):
    """The sum of the squares of all gradients is added in another order."""
    near = {"rtol": 1e-12, "atol": 1e-12} if case == "dino, clipped" else {}
    for rank, (results, _) in enumerate(found):
        usual, split = results[case]
        assert_rows(split, usual, rank, **near)


def test_gradients_are_clipped(found):
    results, _ = found[0]
    gradients = {
        case: results[case][0]["gradient head.0.weight"] for case in ("dino", "dino, clipped")
    }
    assert gradients["dino, clipped"].norm() < 0.1 * gradients["dino"].norm()


@pytest.mark.parametrize("name", METHODS)
def test_a_split_method_equals_one_process(name, found):
    alone = one_step(name, False)
    for rank, (results, _) in enumerate(found):
        # timm resizes positions in float32; the classifier's scores are float32
        near = {"rtol": 1e-6, "atol": 1e-6} if name == "supervised" else {"rtol": 1e-9, "atol": 2e-8}
        assert_rows(results[name][1], alone, rank, **near)


def test_gloo_needs_a_sum_in_place_of_a_mean(found):
    """Control: without it gradients are wrong or there are none, and AdamW would not show it."""
    _, control = found[0]
    assert control != "equal"
