"""shard=true: the same numbers as one process and as DistributedDataParallel, with a part of the
memory; what cannot be split is refused."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from selfsight import distributed
from selfsight.encoders.artifact import read_network
from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.methods.method import Batch, Method
from selfsight.recompute import compute_in_parts, recompute_blocks
from selfsight.testing import tiny_vit
from selfsight.train.engine import in_parallel
from selfsight.train.layers import FrozenBackbone
from selfsight.train.optim import OptimizerConfig, build_optimizer
from selfsight.train.sharding import check_shard, clip_gradient
from tests.conftest import TINY, heads
from tests.methods.test_methods import batch_of, build
from tests.processes import results_of_ranks, two_ranks

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
        torch.testing.assert_close(found[key], value, **(near or {"rtol": 0, "atol": 0}), msg=key)


def one_step(name: str, split: bool, double: bool = True, amp: bool = False, **how) -> dict:
    """Loss, gradients and the state after one step.

    Args:
        how: `parts` of the encoder, whether to `recompute`, `clip` the gradients at a norm, and
            take a first step with a `frozen` encoder, or `look` at a batch through the encoder.
    """
    method = build(name, vit=True)
    method = method.double() if double else method
    compute_in_parts(method, method.backbone, how.get("parts", 1))
    if how.get("recompute"):
        recompute_blocks(method, method.backbone)
    batch = rows_of(name, double)
    module = in_parallel(method, CPU, split, amp)
    if how.get("frozen"):
        frozen = FrozenBackbone(method, 0.5)
        assert frozen.changes(0.0)
        module = in_parallel(method, CPU, split, amp)  # as `fit` does it
        module(batch).loss.backward()
        assert all(p.grad is None for p in method.backbone.parameters())
        torch.optim.SGD([p for p in method.parameters() if p.grad is not None], 0.1).step()
        method.zero_grad()
        assert frozen.changes(0.5)
        module = in_parallel(method, CPU, split, amp)
    seen = {}
    if how.get("look"):
        method.look = lambda batches: seen.update(seen=method.backbone(batches[0].views[0]))
        getattr(module, "look", method.look)([batch])
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = module(batch).loss
    loss.backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    if "clip" in how:
        clip_gradient(trained, how["clip"])
    gradients = values(((key, p.grad) for key, p in method.named_parameters()), "gradient")
    torch.optim.SGD(trained, 0.1).step()
    method.after_step(0.5)
    loss = {"loss": distributed.mean(loss.detach()), **seen}
    return {**loss, **gradients, **values(method.state_dict().items(), "state")}


# What is compared with DistributedDataParallel, beside every method in float64.
CASES = {
    **{f"{name} in fp32": (name, {"double": False}) for name in ("dino", "swav")},
    **{f"{name} in bf16": (name, {"double": False, "amp": True}) for name in ("dino", "mae")},
    **{f"{name} in parts": (name, {"parts": 2}) for name in ("dino", "ijepa")},
    **{f"{name} recomputed": (name, {"recompute": True}) for name in ("dino", "mae")},
    "ijepa, parts recomputed": ("ijepa", {"recompute": True, "parts": 2}),
    "mae, frozen before": ("mae", {"frozen": True}),
    "mae, looked before": ("mae", {"look": True}),
    "dino, clipped": ("dino", {"clip": 0.01}),
    **{name: (name, {}) for name in METHODS},
}


WIDE = {"embed_dim": 96, "depth": 3, "num_heads": 3}  # of the encoder whose memory is counted


def wide() -> Method:
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 4, "num_classes": 0, "dynamic_img_size": True}
    encoder = timm.create_model("vit_tiny_patch16_224", **options, **WIDE)
    keys = {"hidden_dim": 64, "bottleneck_dim": 32, "output_dim": 256}
    return METHODS["dino"](encoder, METHODS["dino"].Config(**keys)).train()


def held() -> dict[str, int]:
    """Bytes that this rank holds after a backward pass and a step: of the storages, so that what a
    view hides counts as well."""
    method = wide()
    module = in_parallel(method, CPU, split=True)
    optimizer = build_optimizer(method, ADAMW, 1e-3)
    module(rows_of("dino", double=False)).loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    teacher = {id(p) for p in method.teacher.parameters()}
    kept = {
        "weights": [p for p in method.parameters() if id(p) not in teacher],
        "gradients": gradients,
        "state": states,
        "teacher": method.teacher.parameters(),
    }
    return {what: storage_bytes(tensors) for what, tensors in kept.items()}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum({x.data_ptr(): x.nbytes() for t in local for x in [t.untyped_storage()]}.values())


def other_queues(rank: int) -> dict[str, Tensor]:
    """Of a method whose ranks drew other numbers, as a user's own code may: its buffers, split."""
    torch.manual_seed(rank)
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **WIDE)
    method = METHODS["nnclr"](encoder)
    method.register_buffer("seen", torch.tensor([rank == 0, True]))
    in_parallel(method, CPU, split=True)
    return dict(method.named_buffers())


def compare(rank: int, world: int) -> tuple[dict, str, dict[str, int], dict[str, Tensor]]:
    results = {}
    for case, (name, how) in CASES.items():
        results[case] = [one_step(name, split, **how) for split in (False, True)]
    bytes_held, force_sum = held(), FSDPModule.set_force_sum_reduction_for_comms

    def sum_alone(part: FSDPModule, _: bool) -> None:
        force_sum(part, True)
        part.set_gradient_divide_factor(1.0)

    FSDPModule.set_force_sum_reduction_for_comms = sum_alone
    control = "equal"
    try:
        assert_rows(one_step("swav", True, double=False), results["swav in fp32"][0], rank)
    except (AssertionError, RuntimeError, ValueError) as error:
        control = f"{type(error).__name__}: {error}"
    return results, control, bytes_held, other_queues(rank)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of_ranks(compare, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_a_split_method_equals_one_that_is_not_bit_for_bit(case, found):
    """The sum of the squares of all gradients is added in another order."""
    near = {"rtol": 1e-12, "atol": 1e-12} if case == "dino, clipped" else {}
    for rank, (results, *_) in enumerate(found):
        usual, split = results[case]
        assert_rows(split, usual, rank, **near)


def test_gradients_are_clipped(found):
    results, *_ = found[0]
    gradients = {
        case: results[case][0]["gradient head.0.weight"] for case in ("dino", "dino, clipped")
    }
    assert gradients["dino, clipped"].norm() < 0.1 * gradients["dino"].norm()


@pytest.mark.parametrize("name", METHODS)
def test_a_split_method_equals_one_process(name, found):
    alone = one_step(name, False)
    for rank, (results, *_) in enumerate(found):
        # timm resizes positions in float32; the classifier's scores are float32
        rtol, atol = (1e-6, 1e-6) if name == "supervised" else (1e-9, 2e-8)
        assert_rows(results[name][1], alone, rank, rtol=rtol, atol=atol)


def test_a_sum_of_gradients_in_place_of_their_mean_would_be_noticed(found):
    """The control of all above. AdamW divides gradients by their own size and would hide it."""
    _, control, *_ = found[0]
    assert control.startswith("AssertionError: gradient")


# Memory -------------------------------------------------------------------------------------------


def test_memory_is_what_the_formula_of_the_documentation_says(found):
    """docs/scaling.md: for each weight 4 bytes of it, 4 of its gradient and 8 of AdamW's state, and
    4 of the teacher's, divided by the processes. Control: without shard it is not divided."""
    method = wide()
    student = sum(p.numel() for p in method.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in [*method.backbone.parameters()] if not p.requires_grad)
    teacher = sum(p.numel() for p in method.teacher.parameters())
    formula = {
        "weights": 4 * (student + fixed),
        "gradients": 4 * student,
        "state": 8 * student,
        "teacher": 4 * teacher,
    }
    for _, _, bytes_of, _ in found:
        for what, wanted in formula.items():
            assert bytes_of[what] == pytest.approx(wanted / 2, rel=0.1), what
            assert bytes_of[what] != pytest.approx(wanted, rel=0.1), what


def test_buffers_start_as_those_of_rank_0(found):
    first, second = (rank[3] for rank in found)
    assert first["seen"].all()
    for name, buffer in first.items():
        assert torch.equal(buffer, second[name]), name


# What evaluations and users see -------------------------------------------------------------------


class Scalar(METHODS["simclr"]):
    """A method with a parameter that has no rows."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.temperature = nn.Parameter(torch.tensor(0.1))


def tied(where: str) -> Method:
    """A method in which two parts have one parameter."""
    method = METHODS["simclr"](tiny_vit())
    first, second = method.backbone.blocks[:2]
    if where == "matrices of two blocks":
        second.mlp.fc1.weight = first.mlp.fc1.weight
    elif where == "a layer of two blocks":
        second.mlp = first.mlp
    elif where == "a block and a head":
        method.extra = nn.Linear(*first.mlp.fc1.weight.shape[::-1])
        method.extra.weight = first.mlp.fc1.weight
    elif where == "vectors of two blocks":
        second.norm1.weight = first.norm1.weight
    elif where == "one block":
        first.mlp.extra = nn.Linear(*first.mlp.fc1.weight.shape[::-1])
        first.mlp.extra.weight = first.mlp.fc1.weight
    else:
        method.also = method.backbone
    return method


@pytest.mark.parametrize(
    ("where", "refused"),
    [
        ("matrices of two blocks", True),
        ("a layer of two blocks", True),
        ("a block and a head", True),
        ("vectors of two blocks", False),
        ("one block", False),
        ("another name", False),
    ],
)
def test_a_matrix_of_two_parts_is_refused(where, refused, monkeypatch):
    """Each process would train a matrix of its own for the part that is not gathered with it."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    said = pytest.raises(UserError, match=r"shard=true: backbone\.blocks\.0\.mlp\.fc1\.weight is")
    with said if refused else contextlib.nullcontext():
        check_shard(tied(where), ADAMW)


@pytest.mark.parametrize(
    ("method", "optimizer", "said"),
    [
        (METHODS["simclr"](tiny_vit()), {"name": "lars"}, "optimizer.name=lars: with shard=true"),
        (METHODS["simclr"](tiny_vit()), {"name": "lamb"}, "optimizer.name=lamb: with shard=true"),
        (METHODS["simclr"](tiny_vit()), {"name": "timm:muon"}, "by the whole tensor; choose adamw"),
        (METHODS["simclr"](tiny_vit()), {"name": "timm:lars"}, "optimizer.name=timm:lars"),
        (METHODS["simclr"](tiny_vit()), {"name": "timm:adafactorbv"}, "timm:adafactorbv: with"),
        (METHODS["simclr"](tiny_vit()), {"name": "timm:lion"}, None),
        (METHODS["simclr"](tiny_vit()), {"name": "sgd"}, None),
        (Scalar(tiny_vit()), {"name": "adamw"}, "temperature is a number without rows"),
    ],
)
def test_what_cannot_be_split_is_refused(method, optimizer, said, monkeypatch):
    config = OptimizerConfig(**optimizer)
    check_shard(method, config)  # one process holds all rows
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    if said is None:
        check_shard(method, config)
        return
    with pytest.raises(UserError, match=said) as caught:
        check_shard(method, config)
    assert "leave out shard" in str(caught.value)


QUICK = [*TINY, "batch_size=32", "max_steps=2", "precision=fp32", "shard=true", "run=r"]


def test_batch_normalisation_in_the_encoder_is_refused(tmp_path):
    ranks = two_ranks("pretrain", "digits/simclr", *QUICK, cwd=tmp_path)
    assert [done.returncode for done in ranks] == [2, 2]
    (line,) = ranks[0].stderr.splitlines()
    assert line.startswith("selfsight: shard=true: the encoder has batch normalisation")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_split_run_writes_what_others_write(tmp_path):
    """kNN checks, best.safetensors and the encoder come from a whole copy: that of a run in which
    nothing is split. layer_decay and accumulated parts work."""
    keys = [*QUICK[:-2], *heads("mae"), "optimizer.layer_decay=0.7"]
    keys += ["max_steps=4", "batch_size=700", "evaluate.every_epochs=1", "accumulate=2"]
    keys += ["save_best=true", "clip_gradient=1"]
    for run, more in (("split", ["shard=true", "checkpoint.sharded=true"]), ("usual", [])):
        ranks = two_ranks("pretrain", "digits/mae", *keys, *more, f"run={run}", cwd=tmp_path)
        assert [done.returncode for done in ranks] == [0, 0], ranks[0].stderr
    for name in ("encoder.safetensors", "best.safetensors"):
        found, wanted = (read_network(tmp_path / run / name) for run in ("split", "usual"))
        for key, value in wanted.tensors.items():
            torch.testing.assert_close(found.tensors[key], value, rtol=1e-5, atol=1e-6, msg=key)
    split, usual = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("split", "usual"))
    assert [r.get("knn") for r in split] == [r.get("knn") for r in usual]
    assert sum("knn" in record for record in split) == 2
    (checkpoint,) = (tmp_path / "split" / "checkpoints").glob("step-00000004.*")
    assert len(list(checkpoint.glob("process-*-of-2.*.pt"))) == 2
