"""Panels of a Vision Transformer: their pictures are decoded and compared with the images."""

import base64
import io
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from selfsight.batch import Normalization
from selfsight.pretraining.config import compose
from selfsight.pretraining.job import pretrain
from selfsight.report.page.panel import Panel
from selfsight.report.page.subject import read_subject
from selfsight.report.page.vit import panels_of, vit_panels
from selfsight.testing import TinyEncoder
from tests.conftest import TINY, heads

HALF = Normalization((0.5,) * 3, (0.5,) * 3)
TAG = re.compile(r'<img src="data:image/webp;base64,([^"]+)" alt="([^"]+)" width="(\d+)"')


def pictures(panel: Panel) -> list[tuple[str, np.ndarray, int]]:
    """Text, pixels and width on the page of each picture of a panel."""
    assert panel.html.count("<img") == len(TAG.findall(panel.html))
    return [
        (alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")), int(width))
        for data, alt, width in TAG.findall(panel.html)
    ]


def of_a_run(folder, *keys: str) -> list[Panel]:
    config = compose("digits/simclr", [*TINY, *keys, "data.limit=64", "max_steps=1"], str(folder))
    pretrain(config.config, quiet=True)
    return panels_of(read_subject(folder, ["device=cpu"]))


def test_each_image_stands_before_its_maps():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    images = (torch.rand(9, 3, 32, 32) * 255).round() / 255
    attention, components = vit_panels(vit, images, HALF)
    assert "class token" in attention.note
    found = pictures(attention)
    assert len(found) == 8 * (1 + 1 + 3)  # of nine images eight
    for number in range(8):
        row = found[5 * number : 5 * number + 5]
        assert np.array_equal(row[0][1], (images[number] * 255).byte().permute(1, 2, 0).numpy())
        assert {width for _, _, width in row} == {96}  # three times as large
        assert [pixels.shape for _, pixels, _ in row[1:]] == [(4, 4, 3)] * 4
        assert all(pixels.sum(-1).max() > 500 for _, pixels, _ in row[1:])  # its own scale
        assert row[1][0].startswith("mean, ")
        assert row[4][0].startswith("head 3, ")
        assert row[4][0].endswith(f"image {number + 1}")
    assert len(pictures(components)) == 8 * 2
    assert "image-rendering" not in attention.html  # the style is the page's
    assert attention.html.count('class="pixels"') == len(found)


@pytest.mark.parametrize(("size", "width"), [(96, 96), (224, 112), (512, 102), (60, 120)])
def test_large_images_are_shown_smaller_and_small_ones_enlarged(size, width):
    options = {"img_size": size, "patch_size": size // 4, "embed_dim": 24, "depth": 1}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, num_heads=2, **options).eval()
    panels = vit_panels(vit, torch.rand(1, 3, size, size), HALF)
    assert {w for panel in panels for _, _, w in pictures(panel)} == {width}


def test_images_of_one_channel_and_of_many():
    for channels in (1, 2, 5):
        options = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
        vit = timm.create_model(
            "vit_tiny_patch16_224", in_chans=channels, num_classes=0, **options
        ).eval()
        mean = (0.5,) * channels
        images = torch.rand(1, channels, 16, 16)
        panel = vit_panels(vit, images, Normalization(mean, mean))[0]
        bands = [0, 0, 0] if channels < 3 else [0, 1, 2]
        expected = (images[0, bands] * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(pictures(panel)[0][1], expected)


def test_a_convolutional_network_has_no_panels(tmp_path):
    assert vit_panels(TinyEncoder().eval(), torch.rand(1, 3, 16, 16), HALF) == []
    assert of_a_run(tmp_path / "run") == []


def test_run_of_mae_shows_what_it_predicts_and_without_checkpoint_says_why(tmp_path):
    panels = of_a_run(tmp_path / "run", *heads("mae"))
    assert [panel.name for panel in panels] == ["attention", "components", "reconstruction"]
    assert "norm_pix" in panels[2].note
    assert "After step 1" in panels[2].note
    found = pictures(panels[2])
    assert len(found) == 8 * 4
    image, seen, predicted, both = (pixels.astype(int) for _, pixels, _ in found[:4])
    gray = (seen == 128).all(-1)
    assert 0.5 < gray.mean() < 1
    assert np.array_equal(seen[~gray], image[~gray])
    assert np.array_equal(both[~gray], image[~gray])
    assert np.array_equal(both[gray], predicted[gray])
    again = panels_of(read_subject(tmp_path / "run", ["device=cpu"]))
    assert again == panels

    for file in (tmp_path / "run/checkpoints").iterdir():
        file.unlink()
    *_, panel = panels_of(read_subject(tmp_path / "run", ["device=cpu"]))
    assert "<img" not in panel.html
    assert "Not drawn" in panel.html
    assert "no checkpoint" in panel.html


@pytest.mark.parametrize("name", ["ijepa", "ibot"])
def test_methods_that_predict_features_have_no_pixels(name, tmp_path):
    panels = of_a_run(tmp_path / "run", *heads(name))
    assert [panel.name for panel in panels] == ["attention", "components"]
