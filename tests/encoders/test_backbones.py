"""Encoders by name: one model of every family of timm works, or is refused in one line."""

import copy
import re

import pytest
import timm
import torch
from torch import nn

from selfsight import own, randomness
from selfsight.batch import Batch, SampleKey, sides
from selfsight.encoders.artifact import Network
from selfsight.encoders.backbones import BackboneConfig, accepts, build_backbone
from selfsight.errors import UserError
from selfsight.methods import vit
from selfsight.methods.mae import MAE
from selfsight.methods.simclr import SimCLR
from selfsight.methods.simmim import SimMIM
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
# (module of timm, model, millions of weights, least size in pixels, width of the features)
TRIED = re.findall(r"^\| (\w+) \| (\w+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
REFUSED = re.findall(r"^\| (\w+) \| (\w+) \| refused \|", PAGE, re.MULTILINE)
QUICK = 3.0  # millions of weights of a model that runs in every test; others: pytest -m slow


def build(name: str, sizes=64, seed: int = 0, channels: int = 3, width=None, **keys) -> nn.Module:
    return build_backbone(BackboneConfig(name=name, **keys), sizes, seed, width, channels)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_page_lists_every_family():
    listed = [row[0] for row in (*TRIED, *REFUSED)]
    assert sorted(listed) == [m for m in timm.list_modules() if timm.list_models(module=m)]


@pytest.mark.parametrize(
    ("module", "name", "size", "width"),
    [
        pytest.param(*(module, name, int(size), int(width)), id=module)
        if float(millions) < QUICK
        else pytest.param(module, name, int(size), int(width), id=module, marks=pytest.mark.slow)
        for module, name, millions, size, width in TRIED
    ],
)
def test_a_model_of_every_family_trains_and_gives_features(module, name, size, width):
    assert name in timm.list_models(module=module)
    backbone = build(name, size)
    assert backbone.num_features == width
    # a backward pass of such a convolution ends the process, see the test below
    assert not any(map(skips, backbone.modules()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = SimCLR(backbone, SimCLR.Config(hidden_dim=8, output_dim=8))
    method.to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in backbone.parameters()]
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3)
    views = torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(0))
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    output = method(Batch(views=views, labels=None, keys=None))
    output.loss.backward()
    optimizer.step()
    assert output.loss.isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))
    description = {"backbone": {"name": name}, "image_size": size, "seed": 1}
    description["backbone_features"] = width
    tensors = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    again = Network(description, tensors, "file").build().eval()
    assert again.num_features == width
    with torch.no_grad():
        features = again(views[0])
        assert features.shape == (2, width)
        torch.testing.assert_close(features, backbone.eval()(views[0]), rtol=1e-3, atol=1e-4)


def skips(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < 8
    )


def test_a_convolution_of_stride_two_over_three_channels_is_the_same_without_the_stride():
    """In channels_last its backward pass writes past its memory (torch 2.15, CPU)."""
    theirs = timm.create_model("fastvit_t8", num_classes=0)
    assert any(map(skips, theirs.modules()))
    ours = build("fastvit_t8")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for model in (theirs, ours, copy.deepcopy(ours)):
        model.eval()(x).sum().backward()
    a, b = theirs.stem[0].conv_scale.conv.weight, ours.stem[0].conv_scale.conv.weight
    assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5 * a.grad.abs().max().item())
    assert torch.allclose(theirs(x), ours(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sized"),
    [
        ("test_vit", True),
        ("deit_tiny_patch16_224", True),
        ("mobilevit_xxs", False),
        ("fastvit_t8", False),
        ("test_resnet", False),
        ("gmlp_ti16_224", True),
    ],
)
def test_weights_are_those_of_the_first_draw_of_the_seed(name, sized):
    """However many builds it took to find what the model accepts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, 3))
        expected = timm.create_model(name, num_classes=0, **({"img_size": 64} if sized else {}))
    state = torch.get_rng_state()
    assert same_weights(build(name, seed=3), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_views_of_several_sizes():
    sizes = {"views.0.size": 64, "views.1.size": 32}
    for name in ("test_vit", "test_resnet", "swin_tiny_patch4_window7_224"):
        keys = {"options": {"depths": [1, 1, 1, 1]}} if "swin" in name else {}
        backbone = build(name, sizes, **keys).eval()
        for size in sizes.values():
            assert backbone(torch.zeros(1, 3, size, size)).shape == (1, backbone.num_features)
        # an evaluation builds it for the largest alone
        assert same_weights(backbone, build(name, 64, **keys))
    with pytest.raises(UserError, match=r"gmlp_ti16_224: does not work on .* views\.1\.size=32"):
        build("gmlp_ti16_224", sizes)


def test_whether_an_encoder_takes_another_size():
    assert accepts(build("test_resnet"), 96)
    assert accepts(build("fastvit_t8"), 96)
    assert not accepts(build("vit_tiny_patch16_224", options={"depth": 1}), 96)
    assert not accepts(build("gmlp_ti16_224"), 96)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_resnet", {"num_classes": 10}, "num_classes=10: an encoder has no classifier"),
        ("test_resnet", {"features_only": True}, "features_only=True: an encoder gives one vector"),
        ("test_resnet", {"pretrained": True}, r"pretrained=True: .* set weights=FILE"),
        ("test_resnet", {"checkpoint_path": "x"}, r"checkpoint_path=x: .* set weights=FILE"),
        ("test_resnet", {"in_chans": 4}, "in_chans=4: images have three channels"),
        ("test_resnet", {"in_chans": "1"}, "in_chans=1: images have three channels"),
        ("test_resnet", {"global_pool": ""}, r"gives \(1, 96, 2, 2\) .* backbone.options"),
        ("test_vit", {"global_pool": ""}, r"gives \(1, 17, 64\) "),
        ("test_resnet", {"global_pool": "sum"}, "global_pool=sum: "),
        ("test_resnet", {"img_size": 64}, "img_size=64: .*unexpected keyword"),
        ("test_resnet", {"out_indices": [1]}, r"with out_indices=\[1\]: .*unexpected keyword"),
        (
            "vit_tiny_patch16_224",
            {"img_size": 32},
            "does not work on images of image_size=64 pixels",
        ),
        ("efficientformer_l1", {}, "efficientformer_l1: does not work on .* image_size=64 pixels"),
    ],
)
def test_options_that_make_no_encoder_are_refused_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, options=options)
    assert "\n" not in str(caught.value)


def test_options_that_change_the_width():
    assert build("test_resnet", options={"global_pool": "catavgmax"}).num_features == 192
    assert build("test_resnet", options={"num_classes": 0, "features_only": False})
    assert build("test_vit", options={"global_pool": "avg"}).fc_norm is not None


def test_an_encoder_of_one_channel_sees_the_mean_of_three():
    gray = torch.rand(2, 1, 64, 64)
    for name in ("test_resnet", "test_vit", "fastvit_t8", "mobilenetv3_small_050"):
        backbone = build(name, options={"in_chans": 1}).eval()
        assert next(backbone.parameters()).numel()
        theirs = backbone.forward_head(backbone.forward_features(gray))
        with torch.no_grad():
            assert torch.allclose(backbone(gray.expand(-1, 3, -1, -1)), theirs, atol=1e-5)
            assert torch.allclose(copy.deepcopy(backbone)(gray), theirs, atol=1e-5)


def test_a_method_on_patches_takes_an_encoder_of_one_channel():
    backbone = build("test_vit", options={"in_chans": 1})
    method = MAE(backbone, MAE.Config(decoder_dim=16, decoder_depth=1, decoder_heads=2))
    keys = SampleKey(0, 0, torch.arange(2))
    output = method(Batch(views=[torch.rand(2, 3, 64, 64)], labels=None, keys=keys))
    output.loss.backward()
    assert backbone.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize(
    ("name", "size", "keys"),
    [
        ("resnet18", 32, {"small_images": True}),
        ("test_vit", (32, 64), {}),
        ("test_vit", {"views.0.size": (48, 32), "views.1.size": 16}, {}),
        ("mobilenetv3_small_050", (32, 64), {}),
    ],
)
def test_images_of_other_channels_and_shapes(name, size, keys, channels):
    backbone = build(name, size, channels=channels, **keys).eval()
    for height, width in map(sides, size.values() if isinstance(size, dict) else [size]):
        shape = backbone(torch.rand(2, channels, height, width)).shape
        assert shape == (2, backbone.num_features)
    again = build(name, size, channels=channels, width=backbone.num_features, **keys)
    assert same_weights(backbone, again)
    assert accepts(backbone, size if isinstance(size, tuple) else 32, channels)
    assert not accepts(backbone, 32, channels + 1)


def test_a_transformer_is_built_for_height_and_width():
    assert build("test_vit", (32, 64)).patch_embed.grid_size == (2, 4)
    with pytest.raises(UserError, match=r"^image_size=\(32, 40\): not a multiple of 16 pixels"):
        build("test_vit", (32, 40))


def test_in_chans_agrees_with_the_images():
    for channels in (1, 4):
        options = {"in_chans": channels}
        named = build("test_resnet", options=options, channels=channels)
        assert same_weights(named, build("test_resnet", channels=channels))
    for asked, channels in ((3, 1), (1, 4), (4, 12)):
        message = (
            rf"^backbone\.options\.in_chans={asked}: the images have data\.channels={channels};"
        )
        with pytest.raises(UserError, match=message):
            build("test_resnet", options={"in_chans": asked}, channels=channels)


class Own(nn.Module):
    """Takes images of four channels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 8, 4, 4)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


def test_an_encoder_of_ones_own_is_tried_with_the_channels():
    with own.given([own.part_of("backbone", Own)]):
        name = own.part_of("backbone", Own).name
        assert build(name, (16, 24), channels=4).num_features == 8
        with pytest.raises(UserError, match=r"expected input.* to have 4 channels, but got 3"):
            build(name, 16)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("cls", [MAE, SimMIM], ids=["mae", "simmim"])
def test_pixels_of_any_channels_are_predicted(cls, channels):
    """The loss of a decoder that knows the pixels is 0: the targets are those of these channels."""
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False}
    options["global_pool"] = "avg"
    backbone = build(
        "vit_tiny_patch16_224", (16, 32), patch_size=4, options=options, channels=channels
    )
    small = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "norm_pix": False}
    method = cls(backbone, cls.Config(**(small if cls is MAE else {"mask_size": 4})))
    x = torch.rand(2, channels, 16, 32)
    loss = method(x, seed=0).loss
    loss.backward()
    assert backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    truth = vit.patches(x, backbone)  # (2, 32, C * 16)
    assert truth.shape == (2, 32, channels * 16)
    assert torch.equal(truth[0, 9], x[0, :, 4:8, 4:8].permute(1, 2, 0).flatten())
    last = method.decoder.pixels if cls is MAE else method.decoder
    last.register_forward_hook(lambda *_: truth)
    assert method(x, seed=0).loss == 0


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("eva02_tiny_patch14_224", {"depth": 1}, 28),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 48}, 64),
        ("resnet18", {"layers": [1, 1, 1, 1]}, 64),
    ],
)
def test_a_known_width_builds_the_same_model(name, options, size):
    """As a finished run is read; a model that must know its size is then not built for another."""
    config = BackboneConfig(name=name, options=options)
    measured = build_backbone(config, size, seed=0)
    known = build_backbone(config, size, seed=0, width=measured.num_features)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (measured, known)]
    assert shapes[0] == shapes[1]
    x = torch.ones(1, 3, size, size)
    assert torch.equal(known.eval()(x), measured.eval()(x))
