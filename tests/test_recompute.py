"""An encoder in parts: memory, random layers, what is refused, and the command."""

import copy
import functools
import gc
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfsight import recompute
from selfsight.encoders.artifact import read_network
from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.methods.ema import EMA
from selfsight.recompute import blocks_of, check_recompute, compute_in_parts, recompute_blocks
from selfsight.testing import TinyEncoder, tiny_vit
from tests.conftest import TINY, heads, small_heads
from tests.methods.test_methods import batch_of, build

SIZE = 16


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and that are alive at one time.

    Args:
        given: tensors that are not counted: inputs, weights, gradients.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak(parts: int, images: int = 512) -> int:
    """As `peak_of`, of an encoder in parts."""
    torch.manual_seed(0)
    encoder = tiny_vit(SIZE)
    compute_in_parts(encoder, encoder, parts)
    return peak_of(encoder, images)


def peak_of(encoder: nn.Module, images: int) -> int:
    """Bytes that the encoder needs in a step beyond inputs, weights and gradients."""
    x = torch.rand(images, 3, SIZE, SIZE)
    weights = list(encoder.parameters())
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    gc.collect()
    with Peak([x, *weights, *(w.grad for w in weights)]) as found:
        encoder(x).square().mean().backward()
    return found.most


def test_activations_of_one_part_are_in_memory():
    """Within 5 % of the whole batch's memory divided by the parts; the features of the whole batch
    are beside them."""
    whole = peak(1)
    for parts in (2, 4, 8):
        features = 2 * 512 * 24 * 4  # and their gradient
        assert peak(parts) - features == pytest.approx((whole - features) / parts, rel=0.05), parts


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(recompute._glibc() is None, reason="another C library frees at once, or later")
def test_memory_between_parts_is_given_back(monkeypatch):
    """Free blocks between blocks that are in use: glibc keeps them, which is the control."""
    monkeypatch.setattr(recompute, "KEPT", 2**26)
    size = 100_000  # bytes; larger blocks may be given back one by one
    blocks = [torch.ones(size, dtype=torch.uint8) for _ in range(2_000)]
    filled = resident()
    del blocks[::2], blocks[::2]  # three of four
    assert filled - resident() < 2**26
    recompute._give_back()
    assert filled - resident() > 0.9 * 1_500 * size - 2**24


def gradients(encoder: nn.Module, work) -> list[Tensor]:
    torch.manual_seed(3)
    x = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    work(x).square().mean().backward()
    found = [weight.grad.clone() for weight in encoder.parameters()]
    encoder.zero_grad()
    return found


@pytest.mark.parametrize("kept", [True, False])
def test_random_layers_draw_the_same_again(kept, monkeypatch):
    """As parts that keep their activations. Control: without the state of the generator the second
    computation draws other numbers."""
    options = {"img_size": SIZE, "patch_size": 4, "num_classes": 0, "embed_dim": 24, "depth": 2}
    encoder = timm.create_model(
        "vit_tiny_patch16_224", num_heads=2, drop_path_rate=0.5, proj_drop_rate=0.3, **options
    ).train()
    parts = lambda x: torch.cat([encoder(part) for part in x.tensor_split(3)])  # noqa: E731
    wanted = gradients(encoder, parts)
    compute_in_parts(encoder, encoder, 3)
    if not kept:
        used = recompute.checkpoint
        forget = functools.partial(used, preserve_rng_state=False)
        monkeypatch.setattr(recompute, "checkpoint", forget)
    found = gradients(encoder, encoder)
    equal = all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))
    assert equal == kept


def test_more_parts_than_images_and_a_teacher():
    encoder, x = tiny_vit(SIZE), torch.rand(3, 3, SIZE, SIZE)
    teacher = EMA(encoder, nn.Linear(24, 5))
    whole = encoder(x), teacher(x)
    both = nn.ModuleList([encoder, teacher])
    compute_in_parts(both, encoder, 8)
    compute_in_parts(both, encoder, 8)  # once is enough
    assert getattr(teacher[0], recompute.PARTS) == 8
    for found, wanted in zip((encoder(x), teacher(x)), whole, strict=True):
        torch.testing.assert_close(found, wanted)
    assert copy.deepcopy(encoder)(x).shape == (3, 24)


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v3"])
def test_heads_of_the_encoders_class_see_the_whole_batch(name):
    """An encoder of one's own may be an nn.Sequential, as heads are, whose batch norm must not be
    that of a part; a part of it may be one, too."""
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU())
    encoder = nn.Sequential(inside, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder.num_features = 8
    config = METHODS[name].Config(**small_heads(name))
    whole = METHODS[name](encoder, config).double().train()
    parts = copy.deepcopy(whole)
    compute_in_parts(parts, parts.backbone, 4)
    views = torch.rand(2, 8, 3, SIZE, SIZE, dtype=torch.float64)
    losses = [method(*views).loss for method in (whole, parts)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    split = [key for key, module in parts.named_modules() if hasattr(module, recompute.PARTS)]
    assert split == (["backbone"] if name == "simclr" else ["backbone", "teacher.0"])


def test_accumulated_parts_are_another_objective_and_parts_of_the_encoder_are_not():
    """Of SimCLR, whose loss compares the images: the control of all that is equal above."""
    torch.manual_seed(0)
    method = METHODS["simclr"](TinyEncoder(), METHODS["simclr"].Config(hidden_dim=16)).double()
    views = torch.rand(2, 8, 3, SIZE, SIZE, dtype=torch.float64)
    whole = method(*views).loss
    halves = [method(*views[:, part]).loss for part in (slice(0, 4), slice(4, 8))]
    compute_in_parts(method, method.backbone, 2)
    torch.testing.assert_close(method(*views).loss, whole, rtol=1e-12, atol=0)
    assert (sum(halves) / 2 - whole).abs() > 0.1


QUICK = [*TINY, "batch_size=32", "max_steps=2", "precision=fp32"]


def test_a_run_in_parts_is_the_same_run(command, tmp_path):
    """It may even be continued with another number of parts."""
    keys = ["pretrain", "digits/mae", *QUICK, *heads("mae")]
    assert command(*keys, "--run", "a", cwd=tmp_path).returncode == 0
    done = command(*keys, "encoder_parts=3", "--run", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command(*keys, "--run", "b", cwd=tmp_path).returncode == 0
    a, b = (read_network(tmp_path / run / "encoder.safetensors").tensors for run in "ab")
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_in_the_encoder_is_refused(command, tmp_path):
    done = command("pretrain", "digits/simclr", *QUICK, "encoder_parts=2", cwd=tmp_path)
    assert done.returncode == 2
    assert "encoder_parts=2: the encoder has batch normalisation" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("simclr", "the loss of simclr compares the images of a batch with each other, here 16"),
        ("byol", "batch normalisation in the heads of byol takes the images of a batch together"),
        ("moco_v2", None),
        ("mae", None),
    ],
)
def test_what_accumulated_parts_change_is_said_with_the_remedy(name, said, command, tmp_path):
    keys = [*QUICK, "accumulate=2", "max_steps=1", *heads(name)]
    done = command("pretrain", f"digits/{name}", *keys, "--run", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("another objective" in done.stderr) == (said is not None)
    if said:
        assert said in done.stderr
        assert "encoder_parts=2 in its place" in done.stderr
        done = command("pretrain", f"digits/{name}", *keys, "accumulate=1", "run=b", cwd=tmp_path)
        assert "another objective" not in done.stderr


# Blocks that are computed again -------------------------------------------------------------------


def peak_of_blocks(depth: int, again: bool, images: int = 32) -> int:
    """As `peak_of`, of an encoder of `depth` blocks."""
    torch.manual_seed(0)
    options = {"img_size": SIZE, "patch_size": 4, "num_classes": 0, "embed_dim": 24, "depth": depth}
    encoder = timm.create_model("vit_tiny_patch16_224", num_heads=2, **options)
    if again:
        recompute_blocks(encoder, encoder)
    return peak_of(encoder, images)


def test_a_block_that_is_computed_again_keeps_its_input_alone():
    """Each further block needs the memory of its input, within 5 %; without recompute ten times
    that."""
    of_input = 32 * 17 * 24 * 4  # images, tokens, width, bytes
    again, usual = (
        (peak_of_blocks(6, again) - peak_of_blocks(3, again)) / 3 for again in (True, False)
    )
    assert again == pytest.approx(of_input, rel=0.05)
    assert usual > 10 * of_input


@pytest.mark.parametrize("kept", [True, False])
def test_random_layers_of_blocks_draw_the_same_again(kept, monkeypatch):
    """Gradients are those of blocks that keep their activations, bit for bit. Control: without the
    state of the generator the second computation draws other numbers."""
    options = {"img_size": SIZE, "patch_size": 4, "num_classes": 0, "embed_dim": 24, "depth": 3}
    encoder = timm.create_model(
        "vit_tiny_patch16_224", num_heads=2, drop_path_rate=0.5, proj_drop_rate=0.3, **options
    ).train()
    wanted = gradients(encoder, encoder)
    if not kept:
        forget = functools.partial(recompute.checkpoint, preserve_rng_state=False)
        monkeypatch.setattr(recompute, "checkpoint", forget)
    recompute_blocks(encoder, encoder)
    recompute_blocks(encoder, encoder)  # once is enough
    found = gradients(encoder, encoder)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)) == kept


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 12),
        ("eva02_tiny_patch14_224", 12),
        ("swin_tiny_patch4_window7_224", 12),
        ("convnext_atto", 12),
    ],
)
def test_blocks_are_found_by_their_lists(name, count):
    with torch.device("meta"):
        assert len(blocks_of(timm.create_model(name, num_classes=0))) == count


def test_blocks_of_torch_and_of_a_teacher_are_found():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 3))
    assert len(blocks_of(nn.ModuleList([encoder, EMA(encoder)]))) == 6
    assert blocks_of(TinyEncoder()) == []


@pytest.mark.parametrize("name", ["mae", "ijepa", "dinov2"])
def test_a_method_whose_blocks_are_computed_again_is_the_same(name):
    """Also the blocks of a decoder or a predictor, and those that no method calls by themselves."""
    found = []
    for again in (False, True):
        method = build(name)
        if again:
            recompute_blocks(method, method.backbone)
            assert all(hasattr(block, recompute.AGAIN) for block in blocks_of(method))
        loss = method(batch_of(name)).loss
        loss.backward()
        found.append([loss, *(p.grad for p in method.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "the encoder has batch normalisation, which would count each batch twice"),
        ("efficientnet_b0", "batch normalisation"),
        ("resnet50_gn", "ResNet has no list of blocks"),
    ],
)
def test_what_cannot_be_computed_again_is_refused(name, said):
    with torch.device("meta"):
        encoder = timm.create_model(name, num_classes=0)
    with pytest.raises(UserError, match=f"recompute=true: .*{said}.*choose"):
        check_recompute(encoder)


def test_a_run_with_recompute_is_the_same_run(command, tmp_path):
    keys = ["pretrain", "digits/mae", *QUICK, *heads("mae"), "backbone.drop_path=0.3"]
    for run, more in (("a", []), ("b", ["recompute=true"])):
        done = command(*keys, *more, "--run", run, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b = (read_network(tmp_path / run / "encoder.safetensors").tensors for run in "ab")
    assert all(torch.equal(b[name], value) for name, value in a.items())
