"""Token by token through timm's Vision Transformers, against timm itself and naive loops."""

import functools
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfsight.errors import UserError
from selfsight.methods import METHODS, vit
from selfsight.methods.positions import fix_positions, sincos
from tests.conftest import TINY_VIT, TinyEncoder, small_heads, tiny_vit
from tests.methods.test_methods import batch_of

SIZE, PATCH = 16, 4  # 16 patches
KINDS = {
    "patches": {},
    "class token": {"class_token": True, "global_pool": "token"},
    "class token, mean": {"class_token": True, "global_pool": "avg"},
    "registers": {"class_token": True, "reg_tokens": 3, "global_pool": "token"},
    "registers without positions": {"class_token": True, "reg_tokens": 3, "no_embed_class": True},
    "sizes vary": {"class_token": True, "dynamic_img_size": True, "global_pool": "token"},
    "norm before": {"pre_norm": True},
}
EVA = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": PATCH, "dynamic_img_size": False}
ROTATED = {  # timm's models with RoPE: EVA-02, DINOv3, and angles of each block and head
    "EVA-02": ("eva02_tiny_patch14_224", {"global_pool": "token"}),
    "DINOv3": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "DINOv3, sizes vary": ("vit_small_patch16_dinov3", {"dynamic_img_size": True}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {"class_token": False, "global_pool": "avg"}),
}
KINDS |= {kind: {} for kind in ROTATED}
every_kind = pytest.mark.parametrize("kind", KINDS)


def encoder(kind: str = "patches", **options) -> nn.Module:
    """A ViT in float64 whose weights, biases and positions are all random."""
    torch.manual_seed(0)
    if kind in ROTATED:
        name, own = ROTATED[kind]
        options = {**EVA, "use_fc_norm": False, **own, **options}
    else:
        name = "vit_tiny_patch16_224"
        options = {**TINY_VIT, "patch_size": PATCH, "global_pool": "avg", **KINDS[kind], **options}
    backbone = timm.create_model(name, img_size=SIZE, num_classes=0, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone.double().eval()


shared = functools.cache(encoder)  # for tests that leave it as it is


def images(n: int = 3, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)


def naive_run(
    backbone: nn.Module, image: Tensor, keep: list[int], replaced: dict[int, Tensor] | None = None
) -> Tensor:
    """(prefix + len(keep), D) of one image: its tokens are made one by one, and only those."""
    replaced = replaced or {}
    weight, bias = backbone.patch_embed.proj.weight, backbone.patch_embed.proj.bias
    prefix = [t for t in (backbone.cls_token, backbone.reg_token) if t is not None]
    tokens = [*torch.cat(prefix, dim=1)[0]] if prefix else []
    none = torch.zeros(len(prefix and torch.cat(prefix, dim=1)[0]) + 16, 24, dtype=image.dtype)
    position = list(none if backbone.pos_embed is None else backbone.pos_embed[0])
    if not backbone.no_embed_class:  # positions begin with those of the prefix
        tokens = [token + position.pop(0) for token in tokens]
    for place in keep:
        row, column = divmod(place, SIZE // PATCH)
        top, left = row * PATCH, column * PATCH
        pixels = image[:, top : top + PATCH, left : left + PATCH]
        token = (weight * pixels).sum((1, 2, 3)) + (0 if bias is None else bias)
        tokens.append(replaced.get(place, token) + position[place])
    x = backbone.norm_pre(torch.stack(tokens)[None])
    rope = getattr(backbone, "rope", None)
    angles = None if rope is None else rope.get_embed(shape=(SIZE // PATCH, SIZE // PATCH))
    for number, block in enumerate(backbone.blocks):
        if rope is None:
            x = block(x)
        else:
            own = angles[number] if backbone.rope_mixed else angles
            x = block(x, rope=own[..., keep, :])
    return backbone.norm(x)[0]


# Running tokens -----------------------------------------------------------------------------------


@every_kind
def test_run_is_the_encoders_own_forward(kind):
    backbone, x = encoder(kind), images()
    tokens = vit.run(backbone, x)
    torch.testing.assert_close(tokens, backbone.forward_features(x))
    torch.testing.assert_close(vit.pool(backbone, tokens), backbone(x))
    torch.testing.assert_close(tokens[1], naive_run(backbone, x[1], list(range(16))))


def test_run_takes_other_sizes():
    backbone, x = encoder("sizes vary"), images(size=8)
    torch.testing.assert_close(vit.run(backbone, x), backbone.forward_features(x))


@every_kind
def test_keeping_all_is_the_full_run_in_any_order(kind):
    backbone, x = encoder(kind), images()
    prefix = backbone.num_prefix_tokens
    full = vit.run(backbone, x)
    torch.testing.assert_close(vit.run(backbone, x, keep=torch.arange(16).expand(3, -1)), full)
    order = torch.stack(
        [torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    )
    shuffled = vit.run(backbone, x, keep=order)
    torch.testing.assert_close(shuffled[:, :prefix], full[:, :prefix])
    for i in range(3):
        torch.testing.assert_close(shuffled[i, prefix:], full[i, prefix:][order[i]])


kinds = st.sampled_from(list(KINDS))
few = settings(max_examples=15, deadline=None)


@given(kinds, st.data())
@few
def test_a_subset_is_run_as_if_the_others_did_not_exist(kind, data):
    backbone, x = shared(kind), images(2)
    count = data.draw(st.integers(1, 16))
    keep = [data.draw(st.permutations(range(16)))[:count] for _ in range(2)]
    got = vit.run(backbone, x, keep=torch.tensor(keep))
    for i in range(2):
        torch.testing.assert_close(got[i], naive_run(backbone, x[i], keep[i]))


@given(kinds, st.data())
@few
def test_padding_changes_no_token_that_counts(kind, data):
    """Each image alone, with only its own places, gives the same; and so do the gradients."""
    backbone, x = shared(kind), images(3)
    prefix = backbone.num_prefix_tokens
    counts = [data.draw(st.integers(1, 9)) for _ in range(3)]
    keep = torch.tensor([data.draw(st.permutations(range(16)))[:9] for _ in range(3)])
    real = torch.arange(9) < torch.tensor(counts)[:, None]
    got = vit.run(backbone, x, keep=keep, real=real)
    weight = backbone.patch_embed.proj.weight
    alone, padded = [], []
    for i, count in enumerate(counts):
        alone.append(naive_run(backbone, x[i], keep[i, :count].tolist()))
        padded.append(got[i, : prefix + count])
        torch.testing.assert_close(padded[-1], alone[-1])
    ours, theirs = (
        torch.autograd.grad(torch.cat(t).sin().sum(), weight)[0] for t in (padded, alone)
    )
    torch.testing.assert_close(ours, theirs)


@given(kinds, st.lists(st.booleans(), min_size=32, max_size=32))
@few
def test_masked_patches_are_a_token_at_their_place(kind, bits):
    backbone, x = shared(kind), images(2)
    masked, token = torch.tensor(bits).view(2, 16), torch.linspace(-1, 1, 24).double()
    got = vit.run(backbone, x, masked=masked, mask_token=token)
    for i in range(2):
        replaced = dict.fromkeys(masked[i].nonzero().flatten().tolist(), token)
        torch.testing.assert_close(got[i], naive_run(backbone, x[i], list(range(16)), replaced))


def test_of_a_masked_patch_nothing_is_seen():
    backbone, x, token = encoder(), images(1), torch.zeros(24).double()
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 5] = True  # row 1, column 1
    before = vit.run(backbone, x, masked=masked, mask_token=token)
    x[:, :, 4:8, 4:8] += 1
    assert torch.equal(vit.run(backbone, x, masked=masked, mask_token=token), before)
    x[:, :, 4:8, 8:12] += 1
    assert not torch.equal(vit.run(backbone, x, masked=masked, mask_token=token), before)


# Pixels and positions -----------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(4, 4), (2, 8)])
def test_patches(patch):
    """Row by row; of each patch its rows, of these their pixels, of these their channels."""
    height, width = patch
    backbone, x = encoder(patch_size=patch), images()
    got = vit.patches(x, backbone)
    columns = SIZE // width
    for i in range(3):
        for n in range(SIZE // height * columns):
            top, left = n // columns * height, n % columns * width
            expected = [
                x[i, c, top + row, left + column]
                for row in range(height)
                for column in range(width)
                for c in range(3)
            ]
            assert got[i, n].tolist() == expected
    # and it is those pixels that become the token of this place
    weight = backbone.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    tokens = got @ weight.T + backbone.patch_embed.proj.bias
    torch.testing.assert_close(tokens, backbone.patch_embed(x))


@pytest.mark.parametrize(("rows", "columns", "dim"), [(4, 4, 24), (3, 5, 8), (14, 14, 192)])
def test_sincos(rows, columns, dim):
    got = sincos(rows, columns, dim)
    assert got.shape == (rows * columns, dim)
    quarter = dim // 4
    for n in range(0, rows * columns, 3):
        for place, half in ((n // columns, 0), (n % columns, 2 * quarter)):
            for k in range(quarter):
                angle = place / 10000 ** (k / quarter)
                assert got[n, half + k].item() == pytest.approx(math.sin(angle), abs=2e-6)
                assert got[n, half + quarter + k].item() == pytest.approx(math.cos(angle), abs=2e-6)


def test_sincos_tells_places_apart():
    table = sincos(14, 14, 192)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1
    with pytest.raises(UserError, match="multiple of 4, not 18"):
        sincos(4, 4, 18)


@every_kind
def test_fixed_positions(kind):
    backbone = encoder(kind)
    if backbone.pos_embed is None:  # they are angles, which have no weights
        before = dict(backbone.state_dict())
        fix_positions(backbone)
        assert backbone.state_dict().keys() == before.keys()
        return
    fix_positions(backbone)
    assert not backbone.pos_embed.requires_grad
    assert "pos_embed" in dict(backbone.named_parameters())
    assert "pos_embed" in backbone.state_dict()
    assert backbone.pos_embed.dtype == torch.float64
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    table = backbone.state_dict()["pos_embed"][0]
    assert table.shape == (prefix + 16, 24)
    assert not table[:prefix].any()
    torch.testing.assert_close(table[prefix:], sincos(4, 4, 24).double())
    # and they are what the encoder adds
    x = images()
    torch.testing.assert_close(vit.run(backbone, x)[0], naive_run(backbone, x[0], list(range(16))))


# Encoders that do not fit -------------------------------------------------------------------------


def build(name: str, backbone: nn.Module) -> nn.Module:
    cls = METHODS[name]
    return cls(backbone, cls.Config(**small_heads(name)))


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "ViT" in m.needs])
def test_a_method_on_patches_refuses_other_encoders(name):
    message = rf"method.name={name}: works on the patches .* backbone.name=vit_small_patch16_224"
    for backbone in (TinyEncoder(), timm.create_model("resnet18", num_classes=0)):
        with pytest.raises(UserError, match=message):
            build(name, backbone)
    with pytest.raises(UserError, match=message):  # positions are no added table
        build(name, encoder(pos_embed="none"))


@pytest.mark.parametrize("name", ["simmim", "ijepa"])
def test_features_of_an_untrained_class_token_are_refused(name):
    with pytest.raises(UserError, match=rf"method.name={name}: .*class_token: false"):
        build(name, encoder("class token"))
    build(name, encoder("class token, mean"))


@pytest.mark.parametrize("name", ["dino", *(n for n, m in METHODS.items() if "ViT" in m.needs)])
def test_methods_train_encoders_with_rotated_positions(name):
    method = build(name, encoder("DINOv3, sizes vary", global_pool="avg").float()).train()
    method(batch_of(name, 4)).loss.backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


def test_mae_trains_the_class_token():
    """In the paper's encoder the class token goes through the decoder, so MAE may keep it."""
    method = build("mae", encoder("class token").float())
    method(batch_of("mae", 4)).loss.backward()
    assert method.backbone.cls_token.grad.abs().max() > 0


def test_simmim_refuses_units_that_do_not_fit():
    cls = METHODS["simmim"]
    for size in (6, 2, 12):
        with pytest.raises(UserError, match=rf"method.mask_size={size}: .*mask_size=4"):
            cls(tiny_vit(), cls.Config(mask_size=size))


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_base_patch16_siglip_224"])
def test_other_transformers_are_refused(name):
    """A patch embedding of its own, a pool that is never trained."""
    backbone = timm.create_model(name, num_classes=0, depth=1)
    with pytest.raises(UserError, match="plain Vision Transformer"):
        vit.require_vit(backbone, "mae")


def test_tokens_without_their_norm_and_patches_dropped_elsewhere_are_refused():
    backbone = encoder("EVA-02", global_pool="avg", use_fc_norm=True)
    with pytest.raises(UserError, match=r"backbone.options=\{use_fc_norm: false\}"):
        vit.require_vit(backbone, "ibot")
    for kind in ("class token", "EVA-02"):
        with pytest.raises(UserError, match=r"remove backbone.options.patch_drop_rate"):
            vit.require_vit(encoder(kind, patch_drop_rate=0.5), "ibot")
