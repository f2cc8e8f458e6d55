"""Dropout and stochastic depth follow the images, not the process or the part of a batch."""

import copy
import functools
from itertools import combinations

import pytest
import timm
import torch
import torchvision
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfsight import randomness
from selfsight.batch import batch_of
from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.random_layers import Draws, Generators, Work, follow_images
from selfsight.recompute import compute_in_parts, recompute_blocks
from selfsight.testing import TinyEncoder, check_method, contract, tiny_vit
from selfsight.train import engine
from tests.conftest import TINY, heads
from tests.methods.test_methods import batch_of as batch_of_images
from tests.methods.test_methods import build
from tests.processes import results_of_ranks
from tests.test_distributed import one_step

STEP = 7


def drop(method: nn.Module) -> None:
    """Give the encoder random layers of many kinds, and a head one."""
    if hasattr(method, "projector"):
        method.projector.append(nn.Dropout(0.2))
    for module in method.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
        if hasattr(module, "drop_path1"):
            module.drop_path1, module.drop_path2 = DropPath(0.4), DropPath(0.4)
        if isinstance(module, TinyEncoder):
            module.layers.extend([DropPath(0.4), nn.Dropout2d(0.2), nn.Dropout(0.2)])
    method.train()


def followed(method: nn.Module) -> None:
    drop(method)
    follow_images(method, method.backbone)


def by_rank(rank: int, method: nn.Module) -> None:
    """As before there were coordinates: torch's generator, with another seed on each rank."""
    drop(method)
    torch.manual_seed(randomness.torch_seed(randomness.STEP, 0, STEP, rank))


CONTROL = ("simclr", "dino", "mae")  # views one by one, many views, patches


def of_rank(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    before = functools.partial(by_rank, rank)
    found = {name: one_step(name, rank, world, change=followed) for name in METHODS}
    found |= {f"{name}, parts": one_step(name, rank, world, 4, followed) for name in CONTROL}
    found |= {f"{name}, control": one_step(name, rank, world, change=before) for name in CONTROL}
    return found


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return results_of_ranks(of_rank, tmp_path_factory.mktemp("ranks"))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():  # 2e-8: timm resizes positions in float32
        rounding = 1e-9 if value.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found[key], value, rtol=rounding, atol=2e-8, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_and_parts_equal_one_process(name, two_ranks):
    """Loss, every gradient, and the state after a step."""
    alone, plain = one_step(name, 0, 1, change=followed), one_step(name, 0, 1)
    assert (alone["loss"] - plain["loss"]).abs() > 1e-6  # something was dropped
    same(one_step(name, 0, 1, 4, followed), alone)
    for results in two_ranks:
        same(results[name], alone)
        same(results.get(f"{name}, parts", alone), alone)


@pytest.mark.parametrize("name", CONTROL)
def test_numbers_of_the_rank_are_another_run(name, two_ranks):
    """The control of the test above."""
    alone = one_step(name, 0, 1, change=functools.partial(by_rank, 0))
    with pytest.raises(AssertionError):
        same(two_ranks[0][f"{name}, control"], alone)


class Alone(nn.Module):
    """Calls layers on what it is given, one after the other, as a method does."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.layers = nn.ModuleList(layers)

    def forward(self, batch) -> list[Tensor]:
        return [layer(torch.cat(batch.views)) for layer in self.layers]


def alone(*layers: nn.Module) -> Alone:
    method = Alone(*layers).train()
    follow_images(method, method.backbone)
    return method


def of(views: list[Tensor], step: int = STEP, first: int = 0, seed: int = 0):
    index = torch.arange(first, first + len(views[0]))
    return batch_of(*views, seed=seed, index=index, step=step)


ONES = torch.ones(4000, 3, 2, 2)


@pytest.mark.parametrize("layer", [DropPath(0.3), nn.Dropout(0.3), nn.Dropout2d(0.3)])
def test_masks_are_fair_and_independent(layer):
    """Between samples, views, layers, calls, steps and seeds: correlations within 5 standard
    deviations; and the mean."""
    other = type(layer)(0.3)
    masks = []
    for place in ({}, {"step": STEP + 1}, {"seed": 1}):
        layers = alone(layer, layer, other)  # two calls of one layer, and another
        for found in layers(of([ONES, ONES], **place)):
            assert ((found - 1 / 0.7).abs() < 1e-6).logical_or(found == 0).all()
            masks += [(view != 0).double()[:, 0, 0, 0] for view in found.chunk(2)]
    n = len(ONES)
    for mask in masks:
        assert abs(mask.mean() - 0.7) < 5 * (0.21 / n) ** 0.5
        assert torch.corrcoef(torch.stack([mask[1:], mask[:-1]]))[0, 1].abs() < 5 / n**0.5
    correlation = torch.corrcoef(torch.stack(masks)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / n**0.5


def test_elements_and_channels_of_an_image_are_independent():
    elements = alone(nn.Dropout(0.3))(of([ONES]))[0].ne(0).double().flatten(1)  # (4000, 12)
    channels = alone(nn.Dropout2d(0.3))(of([ONES]))[0].ne(0).double()
    assert channels.std((2, 3)).max() == 0
    for columns in (elements, channels[..., 0, 0]):
        off = torch.corrcoef(columns.T).fill_diagonal_(0).abs().max()
        assert off < 5 / len(ONES) ** 0.5


@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (DropPath(0.3), "bernoulli_"),
        (DropPath(0.3, scale_by_keep=False), "bernoulli_"),
        (torchvision.ops.StochasticDepth(0.3, "row"), "bernoulli_"),
    ],
)
def test_the_formula_is_the_librarys(layer, plain, monkeypatch):
    """With its own code, to which the same mask is given."""
    x = torch.randn(64, 5, 2)
    mine = alone(layer)(of([x]))[0]
    mask = mine.flatten(1).ne(0).any(1).float().view(-1, 1, 1)
    monkeypatch.setattr(Tensor, plain, lambda self, keep: self.copy_(mask))
    assert torch.equal(type(layer).forward(layer, x), mine)


def test_dropout_scales_as_torch_does():
    x = torch.randn(64, 50)
    layer = nn.Dropout(0.3)
    mine = alone(layer)(of([x]))[0]
    torch.testing.assert_close(mine, torch.where(mine != 0, x / 0.7, 0.0))
    for p in (0.0, 1.0):
        assert torch.equal(alone(nn.Dropout(p))(of([x]))[0], x * (1 - p))
    layer.eval()
    assert torch.equal(layer(x), x)


def test_patches_are_left_out_by_image():
    tokens = torch.arange(40.0).view(1, 20, 2).expand(6, -1, -1)
    layer = PatchDropout(0.5, num_prefix_tokens=2, ordered=True)
    found = alone(layer)(of([tokens]))[0]
    assert found.shape == (6, 2 + 9, 2)
    assert torch.equal(found[:, :2], tokens[:, :2])
    assert all(row[2:, 0].diff().min() > 0 for row in found)  # in order, none twice
    assert len({tuple(row[:, 0].tolist()) for row in found}) == 6
    half = alone(layer)(of([tokens[:3]], first=3))[0]
    assert torch.equal(half, found[3:])


def test_windows_of_an_image_are_of_that_image():
    """Swin's attention has (images x windows) rows; its dropouts follow the images nevertheless."""
    torch.manual_seed(0)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=0,
        attn_drop_rate=0.3,
        proj_drop_rate=0.3,
        drop_path_rate=0.3,
    )
    method = METHODS["dino"](swin, METHODS["dino"].Config(output_dim=8)).double().train()
    follow_images(method, swin)
    views = list(torch.rand(2, 4, 3, 64, 64, dtype=torch.float64))
    whole = method(of(views)).features
    halves = [
        method(of([view[half] for view in views], first=first)).features
        for half, first in ((slice(0, 2), 0), (slice(2, 4), 2))
    ]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-9, atol=1e-12)


def test_every_pair_of_layers_and_calls_differs_in_a_vit():
    """And a run that begins again at a step draws the numbers of that step."""
    seen: list[Tensor] = []
    layer = DropPath(0.5)
    layer.register_forward_hook(lambda _, x, y: seen.append(y.flatten(1).ne(0).any(1)))
    method = alone(*[layer] * 12)
    method(of([torch.ones(64, 2)]))
    first = list(seen)
    assert all(not torch.equal(a, b) for a, b in combinations(first, 2))
    method(of([torch.ones(64, 2)], step=STEP + 1))
    method(of([torch.ones(64, 2)]))
    assert all(map(torch.equal, seen[24:], first))


class Own(nn.Module):
    """A layer that is not known."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    ("layer", "parts", "told"),
    [(Own(), 2, True), (Own(), 1, False), (nn.Dropout(0.5), 2, False), (DropPath(0.5), 2, False)],
)
def test_what_else_draws_is_said_if_it_matters(layer, parts, told):
    said: list[str] = []
    generators = Generators(0, torch.device("cpu"), parts, said.append)
    method = alone(layer)
    for step in range(2):
        with generators.step(step):
            method(of([ONES], step))
    assert len(said) == told
    assert not told or "torch's own random generator" in said[0]


class Tokens(nn.Module):
    """An encoder of 4 tokens, of which torch's layer gets (4, B, 8) or (B, 4, 8)."""

    num_features = 8

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=batch_first)
        self.block.self_attn.dropout = 0.0  # a function in its code, not a layer
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)  # (B, 8, 4)
        x = self.block(x.permute(0, 2, 1) if self.batch_first else x.permute(2, 0, 1))
        return x.mean(1 if self.batch_first else 0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_whose_rows_are_tokens_are_said_to_draw_from_elsewhere(batch_first):
    """Of 2 images and 4 tokens the rows could be taken for those of the images."""
    method, said = METHODS["simclr"](Tokens(batch_first)).train(), []
    follow_images(method, method.backbone)
    images, seen = torch.rand(4, 3, 16, 16), []
    with Generators(0, torch.device("cpu"), 2, said.append).step(0):
        for rows in ([0, 1, 2, 3], [2, 3]):
            method(batch_of(images[rows], images[rows], seed=0, index=torch.tensor(rows)))
            seen.append(method.backbone(images[rows]))
    assert len(said) == (not batch_first)
    assert torch.allclose(seen[0][2:], seen[1], atol=1e-6) == batch_first


@pytest.mark.parametrize("name", METHODS)
def test_no_method_of_the_package_draws_from_elsewhere(name):
    method, said = build(name), []
    followed(method)
    with Generators(0, torch.device("cpu"), 2, said.append).step(0):
        method(batch_of_images(name)).loss.backward()
    assert not said


def test_a_run_says_what_draws_from_elsewhere(command, tmp_path):
    """A ResNet's drop_rate is a function in its code; drop_path is a layer."""
    keys = [*TINY, *heads("moco_v2"), "max_steps=2", "batch_size=32", "accumulate=2"]
    for option, told in (
        ("backbone.options.drop_rate=0.5", True),
        ("backbone.drop_path=0.5", False),
    ):
        words = ["pretrain", "digits/moco_v2", *keys, option, "--run", f"run{told}"]
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("torch's own random generator") == told


class Dropping(METHODS["simclr"]):
    """A method of one's own with a random layer in its head."""

    def __init__(self, backbone: nn.Module, config=None) -> None:
        super().__init__(backbone, config)
        self.projector.append(nn.Dropout(0.3))


def test_the_contract_holds_with_a_random_layer(monkeypatch):
    config = Dropping.Config(hidden_dim=32, output_dim=16)
    check_method(Dropping, config)
    monkeypatch.setattr(contract, "follow_images", lambda method, encoder: None)
    with pytest.raises(contract.BrokenContract, match="two processes"):
        check_method(Dropping, config)


def test_rows_that_are_not_of_images_use_the_layers_own_numbers():
    """As the masked patches of a batch: their number is no multiple of the images."""
    layer = nn.Dropout(0.5)
    method = alone(layer)
    method(of([torch.ones(4, 2)]))
    torch.manual_seed(0)
    found = layer(torch.ones(7, 2))
    torch.manual_seed(0)
    assert torch.equal(found, nn.functional.dropout(torch.ones(7, 2), 0.5))


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_block_that_is_computed_again_draws_the_same(repeatable):
    """And checkpointing that does not know of the numbers is refused, not wrong."""
    views = list(torch.rand(2, 6, 3, 16, 16, dtype=torch.float64))
    methods = [METHODS["simclr"](tiny_vit(16)).double().train()]
    methods.append(copy.deepcopy(methods[0]))
    for method in methods:
        followed(method)
    for block in methods[1].backbone.blocks:
        plain, draws = block.forward, block.draws

        def again(x: Tensor, plain=plain, draws=draws) -> Tensor:
            return checkpoint(
                draws.repeatable(plain) if repeatable else plain, x, use_reentrant=False
            )

        block.forward = again
    if not repeatable:
        with pytest.raises(UserError, match="computed again in the backward pass"):
            methods[1](of(views)).loss.backward()
        return
    for method in methods:  # the first one computes nothing again
        method(of(views)).loss.backward()
    for one, other in zip(*(method.parameters() for method in methods), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("parts", "forgets"), [(1, False), (2, False), (1, True)])
def test_recompute_draws_what_is_drawn_without_it(parts, forgets, monkeypatch):
    """Also where the encoder is in parts, which are computed again themselves. Control: a work that
    draws the numbers that come next each time."""
    views = list(torch.rand(2, 6, 3, 16, 16, dtype=torch.float64))
    methods = [METHODS["simclr"](tiny_vit(16)).double().train()]
    methods.append(copy.deepcopy(methods[0]))
    for method in methods:
        compute_in_parts(method, method.backbone, parts)
        followed(method)
    recompute_blocks(methods[1], methods[1].backbone)
    if forgets:

        def forgetful(draws: Draws, work: Work) -> Work:
            def run(*inputs: Tensor) -> Tensor:
                draws._repeats = True
                return work(*inputs)

            return run

        monkeypatch.setattr(Draws, "repeatable", forgetful)
    for method in methods:
        method(of(views)).loss.backward()
    pairs = zip(*(method.parameters() for method in methods), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs) != forgets


def test_without_a_random_layer_nothing_is_changed():
    method = METHODS["simclr"](TinyEncoder())
    before = {name: dict(vars(module)) for name, module in method.named_modules()}
    follow_images(method, method.backbone)
    assert {name: dict(vars(module)) for name, module in method.named_modules()} == before


def test_the_numbers_do_not_depend_on_the_size_of_the_batch():
    draws = Draws()
    found = []
    for index in (torch.tensor([5, 3, 8, 2]), torch.tensor([8, 5])):
        draws.begin(0, STEP, index)
        found.append(draws.uniform(2 * len(index), 3).view(2, len(index), 3))
    assert torch.equal(found[0][:, [2, 0]], found[1])
    draws.begin(0, STEP, index)
    assert draws.uniform(3, 1) is None


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_compiled_networks_draw_the_same_without_a_break(name, parts):
    """A ViT is compiled block by block, another network as a whole."""
    options = {"num_classes": 0, "drop_path_rate": 0.4}
    if name == "vit":
        more = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
        options |= {**more, "proj_drop_rate": 0.2, "attn_drop_rate": 0.1}
    else:
        options |= {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    model = {"vit": "vit_tiny_patch16_224", "convnext": "convnext_atto"}[name]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses, gradients = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        config = METHODS["simclr"].Config(hidden_dim=16, output_dim=8)
        method = METHODS["simclr"](timm.create_model(model, **options), config).train()
        compute_in_parts(method, method.backbone, parts)
        follow_images(method, method.backbone)
        if compiled:
            for network in method.children():
                engine._compile(network)
        for step in range(3):
            views = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            loss = method(of(list(views), step, 6 * step)).loss
            loss.backward()
            losses.append(loss.detach())
        gradients.append([p.grad for p in method.parameters()])
    torch.testing.assert_close(losses[3:], losses[:3], rtol=1e-5, atol=1e-5)
    assert len({loss.item() for loss in losses[:3]}) == 3
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
    assert not torch._dynamo.utils.counters["graph_break"]
