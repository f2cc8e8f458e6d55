"""Maps of inner layers, against timm's own and against the encoder's feature."""

import weakref

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import selfsight
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.dense import LayerFeatures, chosen_layers, layer_maps, layer_names
from selfsight.encoders.encoder import Encoder
from selfsight.errors import UserError
from selfsight.evaluate.features import extract
from selfsight.methods.heads import EncoderWithProjection
from selfsight.testing import TinyEncoder

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}
EVA = {"embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
STAGES = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
BUILT = {
    "vit": BackboneConfig(name="vit_tiny_patch16_224", patch_size=8, options=SMALL),
    "vit mean": BackboneConfig(
        name="vit_tiny_patch16_224",
        patch_size=8,
        options={**SMALL, "global_pool": "avg", "class_token": False},
    ),
    "registers": BackboneConfig(
        name="vit_small_patch14_reg4_dinov2", patch_size=8, options={**SMALL, "init_values": 0.1}
    ),
    "eva": BackboneConfig(name="eva02_tiny_patch14_224", patch_size=8, options=EVA),
    "resnet": BackboneConfig(name="resnet18", options={"layers": [1, 1, 1, 1]}),
    "small images": BackboneConfig(name="resnet18", small_images=True),
    "convnext": BackboneConfig(name="convnext_tiny", options=STAGES),
}
every_model = pytest.mark.parametrize("kind", BUILT)


def model(kind: str, size: int = 32) -> torch.nn.Module:
    backbone = build_backbone(BUILT[kind], size, seed=0).eval()
    with torch.no_grad():  # norms and biases that do something
        torch.manual_seed(1)
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def picture(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@every_model
@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_maps_are_those_of_timm(kind, norm):
    backbone, x = model(kind), picture()
    count = len(layer_names(backbone))
    asked = [-1, 0, 1, -1]
    theirs = backbone.forward_intermediates(x, norm=norm, intermediates_only=True)
    assert len(theirs) == count
    for ours, number in zip(layer_maps(backbone, x, asked, norm), asked, strict=True):
        torch.testing.assert_close(ours, theirs[number])
        assert ours.ndim == 4


@every_model
@torch.no_grad()
def test_a_layer_has_a_number_from_both_ends_and_a_name(kind):
    backbone, x = model(kind), picture()
    names = layer_names(backbone)
    for number, name in enumerate(names):
        assert chosen_layers(backbone, [number, number - len(names), name]) == [number] * 3
        assert chosen_layers(backbone, str(number)) == [number]
    assert chosen_layers(backbone, "last") == [len(names) - 1]
    one = layer_maps(backbone, x, names[-1])
    torch.testing.assert_close(one, layer_maps(backbone, x))


@pytest.mark.parametrize("kind", ["vit", "registers", "eva"])
@torch.no_grad()
def test_the_last_layers_class_token_is_the_feature(kind):
    """Where the encoder takes its class token, normalised."""
    options = {**BUILT[kind].options, "global_pool": "token"}
    config = BUILT[kind].model_copy(update={"options": options})
    backbone, x = build_backbone(config, 32, seed=0).eval(), picture()
    (pair,) = backbone.forward_intermediates(
        x, [-1], return_prefix_tokens=True, norm=True, intermediates_only=True
    )
    torch.testing.assert_close(pair[1][:, 0], backbone(x))
    torch.testing.assert_close(pair[0], layer_maps(backbone, x)[0])


@pytest.mark.parametrize("kind", ["vit mean", "resnet", "small images"])
@torch.no_grad()
def test_the_last_layers_mean_is_the_feature(kind):
    """Where the encoder takes the mean over places."""
    backbone, x = model(kind), picture()
    mean = LayerFeatures(backbone, "last", 3, (32, 32))
    torch.testing.assert_close(mean(x), backbone(x))
    assert mean.num_features == backbone.num_features


@torch.no_grad()
def test_the_maps_of_an_encoder_with_a_head_are_those_of_the_model_inside():
    backbone, x = model("resnet"), picture()
    headed = EncoderWithProjection(backbone, 8).eval()
    torch.testing.assert_close(layer_maps(headed, x, [2, 3]), layer_maps(backbone, x, [2, 3]))


@torch.no_grad()
def test_features_of_layers_are_their_means_one_after_the_other():
    backbone, x = model("convnext"), picture()
    both = LayerFeatures(backbone, ["stages.1", -1], 3, (32, 32))
    maps = layer_maps(backbone, x, [1, 3])
    torch.testing.assert_close(both(x), torch.cat([m.mean((2, 3)) for m in maps], 1))
    assert (both.num_features, both.layers) == (16 + 32, ["stages.1", "stages.3"])


@pytest.mark.parametrize("layers", [9, -4, "blocks.7", "", [0, 3], [], [1.5], 1.5, None])
def test_unknown_layers_are_one_line(layers):
    with pytest.raises(UserError, match=r"^layers.*give a number") as found:
        chosen_layers(model("vit"), layers)
    assert "\n" not in str(found.value)


def test_numbers_of_numpy_name_layers():
    assert chosen_layers(model("vit"), np.int64(-1)) == [2]
    assert chosen_layers(model("vit"), np.arange(2)) == [0, 1]


def test_a_model_without_layers_is_one_line():
    for backbone in (TinyEncoder(), timm.create_model("test_resnet", num_classes=0).global_pool):
        with pytest.raises(UserError, match=r"^layers: \w+ gives no maps of its layers"):
            layer_names(backbone)


# Of pictures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    about = {"image_size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "data": {}}
    return Encoder(build_backbone(BUILT["small images"], 16, seed=0), about)


def pixels(count: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_dense_prepares_pictures_as_embed_does(encoder):
    images = pixels()
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    expected = layer_maps(encoder.backbone, x, [1, 4])
    for found, right in zip(encoder.dense(images, [1, -1], batch_size=3), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
        assert not found.requires_grad
    torch.testing.assert_close(
        encoder.dense(list(images))[0].mean((2, 3)), encoder.embed(images), rtol=1e-4, atol=1e-5
    )


def test_dense_of_no_picture_has_the_shape_of_others(encoder):
    none, some = (encoder.dense(images, ["act1", "layer3"]) for images in ([], pixels()))
    assert [m.shape[1:] for m in none] == [m.shape[1:] for m in some]
    assert [len(m) for m in none] == [0, 0]


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_an_image(encoder, size):
    for use in (encoder.embed, encoder.dense):
        with pytest.raises(UserError, match=r"^batch_size=.*1 or more"):
            use(pixels(2), batch_size=size)


def test_embed_keeps_no_batch(encoder):
    """While the next pictures are read, every batch that the network saw is gone."""
    seen, alive = [], []

    def pictures():
        for image in pixels(20):
            alive.append(sum(ref() is not None for ref in seen))
            yield image

    hook = encoder.backbone.register_forward_pre_hook(
        lambda _, inputs: seen.append(weakref.ref(inputs[0]))
    )
    try:
        encoder.embed(pictures(), batch_size=4)
        assert len(seen) == 5
    finally:
        hook.remove()
    assert alive == [0] * 20


@pytest.mark.parametrize("in_memory", [None, False])
def test_embed_of_pictures_of_many_sizes_is_what_an_evaluation_reads(tmp_path, encoder, in_memory):
    """But for small ones of sizes of their own: an evaluation rounds those that it resizes."""
    rng = np.random.default_rng(0)
    for n, (height, width) in enumerate([(16, 16), (100, 117), (90, 300), (130, 120), (5, 200)]):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    config = DataConfig(path=str(tmp_path), in_memory=in_memory)
    images = Images(open_source(config, "train"), config, torch.device("cpu"))
    expected = extract(encoder.backbone, images, 16, Normalization((0.5,) * 3, (0.25,) * 3))
    files = sorted(tmp_path.glob("*.png"))
    opened = [Image.open(file) for file in files]
    for given in (files, opened, [np.asarray(image) for image in opened], iter(files)):
        ours = encoder.embed(given, batch_size=2)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_run_gives_its_maps(tmp_path):
    run = selfsight.pretrain("digits/simclr", run=tmp_path / "a", max_steps=1, quiet=True)
    maps = run.encoder().dense(np.zeros((2, 8, 8), np.uint8)[0], "layer4")
    assert [tuple(m.shape) for m in maps] == [(1, 128, 1, 1)]
