"""Losses against stored reference values and against the papers' formulas as float64 loops."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit import losses
from tests.conftest import SHARED

GOLDEN = SHARED / "golden"


def golden_cases() -> list[tuple[str, list[str], Callable]]:
    cases = []
    for t in (0.07, 0.2, 0.5):
        key = f"nt_xent/temperature={t}"
        cases.append((key, ["z1", "z2"], lambda x, t=t: losses.nt_xent(x["z1"], x["z2"], t)))
    for t in (0.07, 0.2):
        key = f"info_nce/queue,temperature={t}"
        # the reference lets a gradient reach the keys; ours stops it, so only that of q is compared
        cases.append((key, ["z1"], lambda x, t=t: losses.info_nce(x["z1"], x["z2"], x["queue"], t)))
    cases.append(
        ("negative_cosine", ["z1", "z2"], lambda x: losses.negative_cosine(x["z1"], x["z2"]))
    )
    return cases


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("key", "inputs", "loss"), golden_cases(), ids=lambda v: str(v)[:40])
def test_golden(key, inputs, loss, dtype):
    if not GOLDEN.is_dir():
        pytest.skip("needs the reference values beside the project, which users do not have")
    expected = json.loads((GOLDEN / "losses.json").read_text())[key]
    with np.load(GOLDEN / "losses.npz") as arrays:
        x = {name: torch.from_numpy(arrays[name]).to(dtype) for name in ("z1", "z2", "queue")}
    for name in inputs:
        x[name].requires_grad_()
    value = loss(x)
    value.backward()
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    assert value.item() == pytest.approx(expected["value"], rel=tolerance)
    norms = dict(zip(("z1", "z2"), expected["grad_norms"], strict=True))
    for name in inputs:
        assert x[name].grad.norm().item() == pytest.approx(norms[name], rel=tolerance)


def naive_nt_xent(z1: torch.Tensor, z2: torch.Tensor, t: float) -> torch.Tensor:
    z = [v / v.norm() for v in torch.cat([z1, z2])]
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [torch.exp(z[i] @ z[k] / t) for k in range(2 * n) if k != i]
        total = total - torch.log(torch.exp(z[i] @ z[j] / t) / sum(others))
    return total / (2 * n)


def naive_info_nce(q, k, queue, t) -> torch.Tensor:
    total = 0.0
    for a, b in zip(q, k, strict=True):
        a, b = a / a.norm(), b / b.norm()
        positive = torch.exp(a @ b / t)
        total = total - torch.log(positive / (positive + sum(torch.exp(a @ n / t) for n in queue)))
    return total / len(q)


def naive_negative_cosine(p, z) -> torch.Tensor:
    return sum(-(a @ b) / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)) / len(p)


def compare(ours: Callable, naive: Callable, *inputs: torch.Tensor) -> None:
    """Value and the gradient of every input that requires one."""
    a, b = ours(*inputs), naive(*inputs)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    wanted = [x for x in inputs if x.requires_grad]
    for mine, theirs in zip(
        torch.autograd.grad(a, wanted), torch.autograd.grad(b, wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


@given(st.integers(2, 6), st.integers(2, 8), st.floats(0.05, 2.0), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_naive_loops(n, d, t, seed):
    generator = torch.Generator().manual_seed(seed)
    z1, z2, queue = (
        torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, n, 7)
    )
    z1.requires_grad_()
    compare(
        lambda a, q: losses.info_nce(a, z2, q, t),
        lambda a, q: naive_info_nce(a, z2, q, t),
        z1,
        F.normalize(queue, dim=1),
    )
    z2.requires_grad_()
    compare(lambda a, b: losses.nt_xent(a, b, t), lambda a, b: naive_nt_xent(a, b, t), z1, z2)
    compare(losses.negative_cosine, naive_negative_cosine, z1, z2)


def test_info_nce_sends_no_gradient_to_keys():
    q, k, queue = torch.randn(4, 8), torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    assert not losses.info_nce(q, k, queue, 0.2).requires_grad


def test_full_precision_under_autocast():
    z1, z2 = torch.randn(8, 16), torch.randn(8, 16)
    expected = losses.nt_xent(z1, z2, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.nt_xent(z1, z2, 0.1)
        half = losses.nt_xent(z1.bfloat16(), z2.bfloat16(), 0.1)
    assert torch.equal(inside, expected)
    assert half.dtype == torch.float32


def test_uniform_embeddings_give_the_log_of_the_number_of_negatives():
    z = torch.ones(5, 3)
    assert float(losses.nt_xent(z, z, 0.5)) == pytest.approx(math.log(9), rel=1e-6)
