"""Runs and evaluations of images that are not RGB, not of 8 bits, or not square."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import selfsight
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.encoders.shown import shown_box
from selfsight.errors import UserError
from selfsight.evaluate.features import extract, plain_views
from selfsight.evaluate.protocols import splits
from selfsight.evaluate.protocols.config import KnnConfig, sized
from selfsight.pretraining import job as jobs
from tests.channels import KINDS, Bands, images_of, keys_of, pixels_of
from tests.conftest import TINY, heads
from tests.train.test_train import config_of

CPU = torch.device("cpu")
QUICK = ["max_steps=2", "batch_size=64", "untrained=false"]


@pytest.fixture(scope="module", params=[KINDS[1], KINDS[4]], ids=str)
def banded(request, tmp_path_factory):
    """A run on images of some channels: its folder, channels and kind."""
    channels, kind = request.param
    folder = tmp_path_factory.mktemp("runs") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "training_images", lambda *_: images_of(channels, kind))
        keys = [*keys_of(channels), "epochs=1", "evaluate.every_epochs=1", "evaluate.images=300"]
        run = selfsight.pretrain(config_of(folder, *keys, method="simclr"), True)
    return run, channels, kind


@pytest.fixture
def opened(banded, monkeypatch):
    """The same, where evaluations find both splits of these images."""
    _, channels, kind = banded
    monkeypatch.setattr(splits, "open_source", lambda _, split, __: Bands(split, channels, kind))
    return banded


def test_the_encoder_says_its_channels_and_is_built_again(banded):
    run, channels, kind = banded
    encoder = selfsight.load_encoder(run.path)
    about = json.loads((run.path / "encoder.json").read_text())
    assert about["channels"] == encoder.description["channels"] == channels
    assert len(about["mean"]) == len(about["std"]) == channels
    assert encoder.backbone.conv1.in_channels == channels
    assert run.metrics()[-1]["knn"] > 0.3
    if kind == np.uint16:  # data.bits=16 says so in the description
        encoder.description["data"]["bits"] = 16
    pixels, images = pixels_of("test", channels, kind)[:5], images_of(channels, kind, "test")
    normalization = Normalization(about["mean"], about["std"])
    expected = extract(encoder.backbone, images, 16, normalization, rows=np.arange(5))
    torch.testing.assert_close(encoder.embed(pixels), expected, rtol=1e-4, atol=1e-5)
    if kind == np.uint16:  # of the range that the description says, 4095 is white
        other = selfsight.load_encoder(run.path)
        other.description["data"] = {**encoder.description["data"], "range": [0, 4095]}
        dark = pixels >> 4
        torch.testing.assert_close(other.embed(dark), encoder.embed(dark * 16))
    for wrong in (np.zeros((8, 8, channels + 1), kind), np.zeros((8, 8, channels), float)):
        with pytest.raises(UserError, match=r"embed: an array must be uint8.* of shape"):
            encoder.embed([wrong])
    if channels > 1:
        with pytest.raises(UserError, match=r"^embed: an image has 3 channels"):
            encoder.embed(Image.new("RGB", (8, 8)))


def test_every_protocol_measures_it(opened):
    run, channels, _ = opened
    keys = ["pixels=false", "fraction=0.3", "untrained=false"]
    for result in selfsight.knn(run) + selfsight.linear(run, keys):
        assert result.data["channels"] == channels
        assert result.metrics.get("k20", 1) > 0.3
    views = "gray" if channels == 1 else "multispectral"
    for measure, more in (
        (selfsight.linear_augmented, []),
        (selfsight.finetune, [f"views={views}", "views.0.count=1"]),
    ):
        (result,) = measure(run, [*QUICK, *more], quiet=True)
        assert 0 <= result.metrics["top1"] <= result.metrics["top5"] <= 1
    with pytest.raises(
        UserError, match=rf"^views\.0\.rand_augment=2: needs red.*set views={views},"
    ):
        selfsight.finetune(run, QUICK, protocol="finetune-mae", quiet=True)
    with pytest.raises(UserError, match=rf"^data\.channels=3: the encoder takes .* {channels};"):
        selfsight.knn(
            run, ["data.channels=3", *(f"data.{k}=[.5, .5, .5]" for k in ("mean", "std"))]
        )


def test_a_module_of_other_channels_is_measured(opened):
    run, _, _ = opened
    encoder, how = selfsight.load_encoder(run.path), {"precision": "fp32", "device": "cpu"}
    (first, *_), (again, *_) = selfsight.knn(run, **how), selfsight.knn(encoder, **how)
    assert again.metrics == first.metrics


def test_views_are_drawn(opened, tmp_path, monkeypatch, capsys):
    _, channels, kind = opened
    images = images_of(channels, kind)
    monkeypatch.setattr("selfsight.report.sheet.training_images", lambda *_: images)
    config = selfsight.compose("digits/simclr", [*TINY, *keys_of(channels)]).config
    selfsight.draw_views(config, tmp_path / "views.png", 2, 1)
    said = capsys.readouterr().err
    assert ("shows the first three, as red, green and blue" in said) == (channels > 3)
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    gray = (sheet[..., 0] == sheet[..., 1]).all() and (sheet[..., 0] == sheet[..., 2]).all()
    assert gray == (channels == 1)
    keys = ["views.0.size=[16, 48]", "views.0.rotate90=0"]
    config = selfsight.compose("digits/simclr", [*TINY, *keys_of(channels), *keys]).config
    selfsight.draw_views(config, tmp_path / "wide.png", 2, 1)
    wide = np.asarray(Image.open(tmp_path / "wide.png"))
    assert (wide[4 : 4 + 64, 4 : 4 + 64] != 255).any()  # the original, enlarged
    assert (wide[4 + 16 : 4 + 64, -52:-4] == 255).all()  # below a view of 16 rows
    assert len(np.unique(sheet)) > 50


# Shapes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Photographs of 40 x 120 pixels whose class is the side of a bright third."""
    root = tmp_path_factory.mktemp("long")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        for n in range(count):
            pixels = generator.integers(0, 100, (40, 120, 3), np.uint8)
            side = ("left", "right")[n % 2]
            pixels[:, :40] += 100 * (side == "left")
            pixels[:, 80:] += 100 * (side == "right")
            (root / split / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / side / f"{n}.png")
    return root


def test_the_part_that_is_shown():
    """A loop over all centred boxes finds no larger one of the shape."""
    for height, width, size in ((40, 120, (16, 32)), (90, 50, (16, 32)), (60, 60, (32, 16))):
        top, left, h, w = shown_box(height, width, size)
        fraction = 1 if max(height, width) <= 96 else 0.875
        fits = [
            k for k in range(1, 500) if size[0] * k / 100 <= height and size[1] * k / 100 <= width
        ]
        assert abs(h - fraction * size[0] * fits[-1] / 100) <= 1
        assert abs(h / w - size[0] / size[1]) < 0.05
        assert abs(2 * top + h - height) <= 1
        assert abs(2 * left + w - width) <= 1
        assert shown_box(height, width, size, "squash") == [0, 0, height, width]


@pytest.mark.parametrize("in_memory", [True, False])
def test_squash_shows_the_whole_image(long, in_memory):
    data = DataConfig(path=str(long), in_memory=in_memory)
    images = Images(open_source(data, "test"), data, CPU)
    seen = torch.cat(list(plain_views(images, (10, 30), resize="squash")))
    assert seen.shape == (12, 3, 10, 30)
    for n in range(12):
        pixels = torch.from_numpy(images.decode(n)[1]).permute(2, 0, 1)[None].float() / 255
        how = {"mode": "bilinear", "antialias": True}
        expected = torch.nn.functional.interpolate(pixels, (10, 30), **how)[0]
        torch.testing.assert_close(seen[n], expected, rtol=0, atol=1e-5 if in_memory else 1 / 255)
    left = seen[..., :10].mean((1, 2, 3)) > seen[..., 20:].mean((1, 2, 3))
    assert torch.equal(left, images.labels == 0)


@pytest.fixture(scope="module")
def shaped(long, tmp_path_factory):
    """A run of a transformer on them, which sees all of an image."""
    keys = [
        "views=mae-small",
        "views.0.size=[8, 24]",
        "evaluate.resize=squash",
        f"data.path={long}",
    ]
    keys += ["batch_size=12", "epochs=8", "evaluate.every_epochs=4", "evaluate.images=24"]
    keys = [*TINY, *heads("mae"), *keys, "data.mean=[.4, .4, .4]", "data.std=[.3, .3, .3]"]
    config = selfsight.compose(
        "digits/mae", keys, str(tmp_path_factory.mktemp("runs") / "b")
    ).config
    return selfsight.pretrain(config, True)


def test_an_evaluation_shows_what_the_run_showed(shaped, long):
    about = json.loads((shaped.path / "encoder.json").read_text())
    assert (about["image_size"], about["resize"]) == ([8, 24], "squash")
    encoder = selfsight.load_encoder(shaped.path)
    assert encoder.backbone.patch_embed.grid_size == (2, 6)
    (found, *_) = selfsight.knn(shaped)
    assert found.metrics["k20"] == 1.0
    assert found.settings == {"resize": "squash"}
    kept = set((shaped.path / "features").glob("*.npy"))
    (other, *_) = selfsight.knn(shaped, resize="crop")
    assert other.settings == {}
    assert len(kept) == 4  # train and test, of the encoder and of the untrained one
    assert len(set((shaped.path / "features").glob("*.npy")) - kept) == 4
    data = DataConfig(path=str(long), in_memory=False)
    images = Images(open_source(data, "test"), data, CPU)
    files = [images.source.name(n) for n in range(len(images))]
    normalization = Normalization(about["mean"], about["std"])
    expected = extract(encoder.backbone, images, (8, 24), normalization, resize="squash")
    torch.testing.assert_close(encoder.embed(files), expected, rtol=1e-5, atol=1e-6)
    for measure in (selfsight.finetune, selfsight.linear_augmented):
        keys = ["max_steps=1", "batch_size=8", "untrained=false"]
        (result,) = measure(shaped, keys, quiet=True)
        assert result.settings["resize"] == "squash"


def test_a_presets_crops_have_the_shape_of_the_size():
    (square,), (wide,) = sized("supervised", 16), sized("supervised", (8, 24))
    assert "crop_ratio" not in square
    assert wide["crop_ratio"] == pytest.approx([2.25, 4.0])
    assert {**wide, "size": 16} == {**square, "crop_ratio": wide["crop_ratio"]}


def test_resize_of_an_evaluation_is_known_by_its_name():
    assert "resize" not in KnnConfig().identity()
    with pytest.raises(UserError, match=r"resize=stretch: .*'crop' or 'squash'"):
        selfsight.compose("digits/simclr", ["evaluate.resize=stretch"])
