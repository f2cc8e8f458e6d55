"""W ranks x batch B == 1 rank x batch W * B: loss, gradient and state, in real gloo processes."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from selfsight import agreement, distributed
from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.methods.heads import BatchNorm
from selfsight.methods.method import Batch, Method
from selfsight.methods.queue import Queue
from selfsight.recompute import compute_in_parts
from tests.channels import KINDS, NAMES
from tests.conftest import TINY, TinyEncoder, heads, selfsight
from tests.data.test_bad import make_folder
from tests.methods.test_methods import batch_of, build
from tests.processes import environment, in_ranks, results_of_ranks, two_ranks_of


def part(batch: Batch, rank: int, world: int, kind: torch.dtype = torch.float64) -> Batch:
    n = len(batch.labels)
    rows = slice(rank * n // world, (rank + 1) * n // world)
    at = dataclasses.replace(batch.keys, index=batch.keys.index[rows])
    return Batch([v[rows].to(kind) for v in batch.views], batch.labels[rows], at, batch.step)


def full_queues(method: Method) -> None:
    """As if earlier batches had filled them with other keys."""
    generator = torch.Generator().manual_seed(5)
    for queue in method.queues:
        keys = torch.randn(queue.keys.shape, generator=generator, dtype=torch.float64)
        queue.keys.copy_(F.normalize(keys, dim=1))
        queue.seen.fill_(len(queue.keys))
        assert queue.full()


def looked(method: Method) -> None:
    """After it has measured what its teacher says of its part of a batch."""
    world = distributed.world_size()
    method.look([part(batch_of("distill", step=s), distributed.rank(), world) for s in (1, 2)])
    assert method.image.standardise.mean.any()


# What only some sizes or states reach: a method, its keys, what is done before the step.
SPECIAL: dict[str, tuple[str, dict, Callable[[Method], None]]] = {
    "swav, full queues": ("swav", {}, full_queues),
    "swav, full queues of unequal shares": ("swav", {"queue_size": 47}, full_queues),
    "distill, standardised, with a queue": ("distill", {"queue_weight": 1.0}, looked),
    "dinov2, centred": ("dinov2", {"centering": "softmax"}, lambda method: None),
    # more features than twice the samples of all ranks: sums over samples, not over features
    "barlow_twins, wide": ("barlow_twins", {"output_dim": 80}, lambda method: None),
    "vicreg, wide": ("vicreg", {"output_dim": 80}, lambda method: None),
}
# The same of images of other channels and bits.
SPECIAL_CHANNELS = {
    f"{name}, {what}": (name, {"kind": kind}, lambda method: None)
    for name, what, kind in zip(
        ("simclr", "mae", "dino", "simmim", "ijepa", "byol"), NAMES, KINDS, strict=True
    )
}


def one_step(
    name: str,
    rank: int,
    world: int,
    parts: int = 1,
    change: Callable[[Method], None] = lambda method: None,
) -> dict[str, torch.Tensor]:
    """Loss, gradients and the state after one step, in float64.

    Args:
        parts: in which the encoder computes this rank's images.
        change: what is done with the method before.
    """
    special = SPECIAL | SPECIAL_CHANNELS
    name, keys, prepare = special.get(name, (name, {}, lambda method: None))
    method = build(name, **keys).double()
    change(method)
    compute_in_parts(method, method.backbone, parts)
    prepare(method)
    wrapped = method
    if world > 1:
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
    kind = {key: keys[key] for key in keys if key == "kind"}
    loss = wrapped(part(batch_of(name, **kind), rank, world)).loss
    loss.backward()
    gradients = {
        f"gradient {k}": p.grad.clone() for k, p in method.named_parameters() if p.grad is not None
    }
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1).step()
    method.after_step(0.5)
    state = {f"state {k}": v.double() for k, v in method.state_dict().items()}
    return {"loss": distributed.mean(loss.detach()), **gradients, **state}


def batch_norm(rank: int, world: int) -> dict[str, torch.Tensor]:
    """A head with batch normalisation, train then eval."""
    torch.manual_seed(1)
    norm, x, weight = BatchNorm(5).double(), torch.randn(12, 5).double(), torch.randn(5).double()
    mine = x.chunk(world)[rank].requires_grad_()
    y = norm(mine)
    ((y * weight).square().mean() * 1.0).backward()
    return {
        "output": distributed.gather(y.detach()),
        "gradient": distributed.gather(mine.grad) / world,
        "mean": norm.running_mean.clone(),
        "variance": norm.running_var.clone(),
        "eval": norm.eval()(x),
    }


def pushed() -> torch.Tensor:
    """(3, 2, 4, 3) keys of three batches, each in two parts as when gradients are accumulated."""
    return torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(2))


def queue(rank: int, world: int) -> dict[str, torch.Tensor]:
    """The state of a queue of 20 after each of the batches."""
    torch.manual_seed(1)
    queue, states = Queue(20, 3), {}
    for number, batch in enumerate(pushed()):
        for whole in batch:
            queue.stage(whole.chunk(world)[rank])
        queue.commit()
        states |= {f"{key} {number}": value.clone() for key, value in queue.state_dict().items()}
    return states


ENCODER_PARTS = (2, 4, 8)
PARTS = {"batch norm": batch_norm, "queue": queue}  # of methods, alone


def of_rank(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    found = {name: one_step(name, rank, world) for name in (*METHODS, *SPECIAL, *SPECIAL_CHANNELS)}
    found |= {name: part(rank, world) for name, part in PARTS.items()}
    found |= {
        f"{name}, {parts} parts": one_step(name, rank, world, parts)
        for name in METHODS
        for parts in ENCODER_PARTS
    }
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return results_of_ranks(of_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [*METHODS, *SPECIAL, *SPECIAL_CHANNELS, *PARTS])
def test_two_ranks_equal_one(name, two_ranks):
    alone = PARTS[name](0, 1) if name in PARTS else one_step(name, 0, 1)
    for results in two_ranks:
        both = results[name]
        assert both.keys() == alone.keys()
        for key, value in alone.items():
            # 2e-8: timm resizes positions in float32
            torch.testing.assert_close(both[key], value, rtol=1e-9, atol=2e-8, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_an_encoder_in_parts_equals_the_whole_batch(name, two_ranks):
    """On one rank and on two, in 2, 4 and 8 parts: loss, every gradient, and the state after it."""
    whole = one_step(name, 0, 1)
    for parts in ENCODER_PARTS:
        ranks = (results[f"{name}, {parts} parts"] for results in two_ranks)
        for found in (one_step(name, 0, 1, parts), *ranks):
            assert found.keys() == whole.keys()
            for key, value in whole.items():
                torch.testing.assert_close(found[key], value, rtol=1e-9, atol=2e-8, msg=key)


def test_queues_hold_the_keys_of_all_ranks_in_rank_order(two_ranks):
    keys = F.normalize(pushed(), dim=-1).flatten(0, 2)  # 24 in 20 places
    for results in two_ranks:
        torch.testing.assert_close(results["queue"]["keys 1"][:16], keys[:16])
        last = torch.cat([keys[20:], keys[4:20]])
        torch.testing.assert_close(results["queue"]["keys 2"], last)
        assert results["queue"]["next 2"] == 4
        # and of a method the keys of the whole batch
        assert torch.equal(results["moco_v2"]["state queue.next"], torch.tensor(32.0).double())


def test_special_cases_reach_what_they_are_named_for():
    for name, (method, keys, prepare) in SPECIAL.items():
        if method in ("distill", "dinov2"):
            continue  # `looked` says what it reaches; masked patches are as many as are drawn
        built = build(method, **keys)
        prepare(built)
        if method == "swav":
            assert all(q.full() for q in built.queues)
            assert len(built.queues[0].keys) % 2 == ("unequal" in name)
        else:
            assert built.config.output_dim > 2 * len(batch_of(method).labels)


def test_collectives_are_the_identity_with_one_process():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.all_sum(x) is x
    assert distributed.mean(x) is x
    assert distributed.maximum(3.0, x.device) == 3.0
    assert (distributed.world_size(), distributed.rank()) == (1, 0)


def alone(rank: int, world: int, folder: str) -> None:
    """Parts in a loop of one's own: the gradient of a method that is called with tensors."""
    import selfsight.front.views as front

    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", world_size=world, rank=rank)
    pixels = torch.randint(256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    own = pixels.to(torch.uint8).chunk(world)[rank]
    x1, x2 = (view.double() for view in front.Views("simclr-small", size=16)(own))
    torch.manual_seed(0)
    method = METHODS["simclr"](TinyEncoder(), METHODS["simclr"].Config(hidden_dim=16)).double()
    wrapped = DistributedDataParallel(method) if world > 1 else method
    wrapped(x1, x2).loss.backward()
    found = {key: p.grad for key, p in method.named_parameters()}
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_parts_alone_compare_the_images_of_all_processes(tmp_path):
    """Without an index, images are numbered through the batch of all ranks: the same views."""
    alone(0, 1, str(tmp_path))
    in_ranks(alone, str(tmp_path))
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for found in two:
        for key, gradient in one.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-8, atol=1e-10)


def test_torchrun_trains_on_the_cpu(tmp_path):
    """A real launch: two processes, one run folder, and the same first loss as one process."""
    keys = [*TINY, "max_steps=5", "method={name: moco_v2, queue_size: 256}", "precision=fp32"]
    keys = [k for k in keys if not k.startswith("backbone")]  # a ViT: no batch statistics
    keys += ["backbone={name: test_vit, small_images: false, patch_size: 8}"]
    # two steps an epoch, so that kNN checks fall between the logged steps
    keys += ["batch_size=700", "log_every=100", "evaluate.every_epochs=1", "epochs=9"]

    command = ["pretrain", "digits/simclr", *keys]
    port = 20_000 + os.getpid() % 20_000
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "selfsight", *command, "run=two"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    selfsight(*command, "--run", "one", cwd=tmp_path)
    assert (tmp_path / "two" / "encoder.safetensors").exists()
    two, one = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("two", "one"))
    assert [r["step"] for r in two] == [1, 2, 4, 5]
    assert ["knn" in r for r in two] == [False, True, True, True]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_encoder_of_the_tests_has_no_batch_statistics():
    assert not list(TinyEncoder().buffers())


# One mistake, one line ----------------------------------------------------------------------------


def mistakes(rank: int, world: int, folder: str) -> None:
    """What each rank is told, written into a file of its own."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )

    def only(where: int, error: Exception) -> Callable[[], str]:
        def work() -> str:
            if rank == where:
                raise error
            return "done"

        return work

    works = {
        "none": (only(2, UserError()), lambda result: {"said": result}),
        "first": (only(0, UserError("seed=x: no number")), None),
        "second": (only(1, UserError("seed=x: no number")), None),
        "disk": (only(1, OSError(28, "No space left on device", "/a")), None),
        "memory": (only(1, MemoryError("8 TiB")), None),
        "bug": (only(1, ValueError("a bug")), None),
        "unlike": (lambda: rank, lambda result: {"lr": 0.1 * result, "seed": 3}),
    }
    told = {}
    for name, (work, alike) in works.items():
        try:
            told[name] = agreement.by_all(work, alike)
        except Exception as error:
            told[name] = type(error).__name__, str(error), getattr(error, "everywhere", False)
    told["by first"] = agreement.by_first(lambda: [rank, world])
    torch.save(told, f"{folder}/told{rank}.pt")
    dist.destroy_process_group()


def test_a_mistake_on_one_rank_is_told_to_all(tmp_path):
    in_ranks(mistakes, str(tmp_path))
    first, second = (torch.load(tmp_path / f"told{r}.pt") for r in (0, 1))
    bugs = first.pop("bug"), second.pop("bug")
    assert first == second
    assert first["none"] == "done"
    assert first["by first"] == [0, 2]
    one, of = "UserError", "process 1 of 2: "
    again = "Remove the cause and run the same command again"
    assert first["first"] == (one, "seed=x: no number", True)
    assert first["second"] == (one, of + "seed=x: no number", True)
    assert first["disk"] == (one, of + f"'/a': No space left on device. {again}", True)
    assert first["memory"] == (
        one,
        of + "not enough memory (8 TiB); free some, or reduce batch_size",
        True,
    )
    words = "process 1 of 2 differs from process 0: lr=0.1 instead of 0.0; start all with the"
    assert first["unlike"] == (one, f"{words} same keys and the same data", True)
    # a bug keeps its traceback where it happened
    assert bugs == ((one, of + "ValueError: a bug", True), ("ValueError", "a bug", False))


def test_ranks_with_other_keys_or_data_do_not_train(tmp_path):
    """Also a mistake that only one of them sees: all end with 2, and rank 0 says why."""
    keys = [*TINY, *heads("simclr"), "max_steps=1", "run=r"]
    for name, images in (("a", 80), ("b", 70)):
        make_folder(tmp_path / name / "images", images, set())
    moved = {"data.path=images": [tmp_path / "a", tmp_path / "b"]}
    for odd, cwd, said in (
        (["seed=5"], [tmp_path] * 2, "differs from process 0: seed=5 instead of 0;"),
        ([], moved["data.path=images"], "differs from process 0: images=57 instead of 64;"),
    ):
        own = [] if odd else ["data.path=images"]
        ranks = two_ranks_of(
            [["pretrain", "digits/simclr", *keys, *own, *(odd if n else [])] for n in range(2)], cwd
        )
        assert [done.returncode for done in ranks] == [2, 2]
        assert ranks[0].stderr.startswith(f"selfsight: process 1 of 2 {said}")
        assert len(ranks[0].stderr.splitlines()) == 1
        assert ranks[1].stderr == ""
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_collective_that_fails_since_another_process_has_ended_is_known():
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:7"
    assert agreement.is_of_another(RuntimeError(gloo))
    assert agreement.is_of_another(dist.DistBackendError("NCCL error"))
    assert not agreement.is_of_another(RuntimeError("shapes do not match"))
