"""Hidden pixels as a run's method predicts them, against the method's own loss and targets."""

from pathlib import Path

import pytest
import timm
import torch
from sklearn.datasets import load_digits

import selfsight
from selfsight import losses
from selfsight.batch import Normalization, batch_of
from selfsight.errors import UserError
from selfsight.methods import MAE, SimMIM, vit
from selfsight.pretraining.config import compose, read_run_config
from selfsight.pretraining.job import pretrain
from selfsight.report.page.reconstruction import predicts_pixels, reconstruct, trained_method
from selfsight.testing import tiny_vit
from selfsight.views.ops import augment
from tests.conftest import TINY, heads

NORMALIZATION = Normalization((0.3, 0.4, 0.5), (0.37, 0.3, 0.25))
METHODS = {
    "mae": lambda: MAE(tiny_vit(16), MAE.Config(decoder_dim=16, decoder_heads=2)),
    "mae, plain pixels": lambda: MAE(
        tiny_vit((16, 24)), MAE.Config(norm_pix=False, decoder_dim=16, decoder_heads=2)
    ),
    "simmim": lambda: SimMIM(tiny_vit(16), SimMIM.Config(mask_size=8)),
}
named = pytest.mark.parametrize("name", METHODS)


def build(name: str) -> MAE | SimMIM:
    torch.manual_seed(0)
    return METHODS[name]().eval()


def digits(method: MAE | SimMIM, count: int = 3) -> torch.Tensor:
    """(B, 3, h, w) in [0, 1] with three different colours."""
    size = method.backbone.patch_embed.img_size
    gray = torch.from_numpy(load_digits().images[:count]).float()[:, None] / 16
    gray = torch.nn.functional.interpolate(gray, size=size, mode="bilinear")
    return torch.cat([gray, 1 - gray, 0.5 * gray], dim=1)


def trained(folder: Path, *keys: str) -> Path:
    """A tiny run on digits."""
    config = compose("digits/simclr", [*TINY, *keys], run=str(folder)).config
    return pretrain(config, quiet=True)


@named
def test_with_the_target_as_prediction_the_composite_is_the_image(name, monkeypatch):
    method = build(name)
    images = digits(method)
    target = vit.patches(augment.normalize(images, *NORMALIZATION), method.backbone)
    _, mask, _ = method.predict(batch_of(images, seed=5))
    if getattr(method.config, "norm_pix", False):
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
        assert losses.mae(target, target, mask, False) == 0
    monkeypatch.setattr(method, "predict", lambda batch: (target, mask, None))
    found = reconstruct(method, images, NORMALIZATION, seed=5)
    assert (found.composite - images).abs().max() < 1 / 255
    assert (found.predicted - images).abs().max() < 1 / 255
    assert found.scaled == (name == "mae")


@named
def test_hidden_patches_are_gray_and_those_of_the_training_and_the_others_untouched(name):
    method = build(name)
    images = digits(method)
    found = reconstruct(method, images, NORMALIZATION, seed=5)
    _, mask, _ = method.predict(batch_of(images, seed=5))
    rows, columns = method.backbone.patch_embed.grid_size
    for b in range(len(images)):
        for n, hidden in enumerate(mask[b].tolist()):
            top, left = 4 * (n // columns), 4 * (n % columns)
            part = (b, slice(None), slice(top, top + 4), slice(left, left + 4))
            shown = found.predicted if hidden else images
            assert torch.equal(found.composite[part], shown[part])
            gray = torch.full_like(images[part], 0.5)
            assert torch.equal(found.masked[part], gray if hidden else images[part])
    assert 0 < mask.float().mean() < 1
    assert rows * columns == mask.shape[1]
    again = reconstruct(method, images, NORMALIZATION, seed=6)
    assert not torch.equal(again.masked, found.masked)


def test_a_scaled_prediction_has_the_mean_and_deviation_of_its_patch(monkeypatch):
    method = build("mae")
    images = digits(method)
    _, mask, _ = method.predict(batch_of(images, seed=0))
    flat = torch.zeros(3, 16, 48)
    monkeypatch.setattr(method, "predict", lambda batch: (flat, mask, None))
    found = reconstruct(method, images, NORMALIZATION)
    x = augment.normalize(images, *NORMALIZATION)
    mean = x[1, :, 4:8, 8:12].mean()  # over colours and pixels, as the loss standardises
    expected = mean * torch.tensor(NORMALIZATION.std) + torch.tensor(NORMALIZATION.mean)
    assert torch.allclose(
        found.predicted[1, :, 4:8, 8:12], expected.clamp(0, 1).view(3, 1, 1).expand(3, 4, 4)
    )


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_method_of_a_run_is_the_one_that_it_trained(name, tmp_path):
    keys = [*heads(name), "data.limit=128", "epochs=2", "checkpoint.every_epochs=1"]
    run = trained(tmp_path / "run", *keys)
    config = read_run_config(run)
    assert predicts_pixels(config)
    method, step = trained_method(run)
    assert (step, method.training) == (4, False)
    assert method.config == config.method
    encoder = selfsight.load_encoder(run).backbone.state_dict()
    assert all(torch.equal(v, encoder[k]) for k, v in method.backbone.state_dict().items())

    files = list((run / "checkpoints").glob("step-*.pt"))
    assert len(files) == 2
    newest = max(files)
    content = newest.read_bytes()
    newest.write_bytes(content[:-5] + b"?" + content[-4:])
    with pytest.raises(UserError, match="damaged"):
        trained_method(run)
    assert newest.exists()  # a report changes no run
    for file in files:
        file.unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        trained_method(run)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    run = trained(tmp_path / "run", *heads("mae"), "data.limit=64", "max_steps=1")
    file = run / "config.yaml"
    text = file.read_text()
    assert "decoder_dim: 32" in text
    file.write_text(text.replace("decoder_dim: 32", "decoder_dim: 64"))
    with pytest.raises(UserError, match="cannot be used: its method is of another run"):
        trained_method(run)
    file.write_text(text.replace("decoder_dim: 32", "decoder_dim: 16777216"))
    with pytest.raises(UserError, match="much larger than its weights"):
        trained_method(run)


def test_methods_without_pixels_have_none_to_show():
    for name, expected in {"mae": True, "simmim": True, "ijepa": False, "ibot": False}.items():
        assert predicts_pixels(compose(f"digits/{name}", []).config) == expected


def test_class_token_and_registers_are_no_patches():
    options = {"img_size": 32, "patch_size": 8, "num_classes": 0, "reg_tokens": 2}
    backbone = timm.create_model("vit_tiny_patch16_224", **options)
    method = MAE(backbone, MAE.Config(decoder_dim=32, decoder_depth=1, decoder_heads=2)).eval()
    images = torch.rand(1, 3, 32, 32)
    assert reconstruct(method, images, NORMALIZATION).composite.shape == images.shape
