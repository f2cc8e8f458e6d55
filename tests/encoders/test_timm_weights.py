"""Weights that timm has by name: from a folder, from the hub's cache, and without a network."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf

from selfsight.encoders.timm_weights import find_timm
from selfsight.errors import UserError
from selfsight.pretraining.build import build_method, with_hash
from selfsight.pretraining.config import compose
from selfsight.pretraining.job import pretrain
from tests.channels import keys_of

ARGUMENTS = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small ViT with a classifier, as timm saves it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, **ARGUMENTS)
    model.pretrained_cfg["mean"] = (0.4, 0.5, 0.6)
    save_for_hf(model, tmp_path / "hub", model_args=ARGUMENTS, safe_serialization=True)
    return "timm:local-dir:hub"


def encoder_of(weights: str, size: int, *keys: str) -> torch.nn.Module:
    overrides = [f"weights={weights}", "views=simclr-small", f"views.0.size={size}", *keys]
    return build_method(compose("photos/simclr", overrides, "runs/x").config).backbone.eval()


@pytest.mark.parametrize("size", [64, 32])
def test_features_are_those_of_timm(folder, size):
    """Also at another size, for which timm resamples the positions."""
    theirs = timm.create_model("local-dir:hub", pretrained=True, num_classes=0, img_size=size)
    x = torch.rand(3, 3, size, size)
    with torch.no_grad():
        found, expected = encoder_of(folder, size)(x), theirs.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_for_other_channels_they_are_adapted_as_by_timm(folder, size, channels, capsys):
    """And the colours of RGB are not taken over."""
    how = {"num_classes": 0, "img_size": size, "in_chans": channels}
    theirs = timm.create_model("local-dir:hub", pretrained=True, **how).eval()
    keys = [*keys_of(channels)[:3], "views=gray-small", "views.0.size=64"]
    ours = encoder_of(folder, size, *keys, f"views.0.size={size}")
    x = torch.rand(3, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    said = " ".join(capsys.readouterr().err.split())
    shape = f"24x3x8x8 to 24x{channels}x8x8"
    assert f"adapted from RGB: patch_embed.proj.weight from {shape}" in said
    assert ("resampled: pos_embed" in said) == (size == 32)
    free = compose("photos/simclr", [f"weights={folder}", keys[0], *keys[3:]])
    assert free.origins.of("data.mean") == "default"


def test_the_model_and_its_colours_are_taken_over(folder):
    found = compose("digits/simclr", [f"weights={folder}"])
    config, origin = found.config, f"weights={folder}"
    assert config.backbone.name == "vit_tiny_patch16_224"
    assert config.backbone.options == ARGUMENTS
    assert not config.backbone.small_images  # of the recipe's ResNet
    assert config.data.mean == (0.4, 0.5, 0.6)
    assert found.origins.of("data.mean") == origin
    assert found.origins.of("backbone.name") == origin


def test_what_the_user_sets_stays(folder, tmp_path):
    keys = ["backbone.name=resnet18", "data.mean=[0.1, 0.1, 0.1]"]
    config = compose("digits/simclr", [f"weights={folder}", *keys]).config
    assert config.backbone.name == "resnet18"
    assert config.data.mean == (0.1, 0.1, 0.1)
    assert config.data.std == (0.5, 0.5, 0.5)
    (tmp_path / "mine.yaml").write_text(
        f"base: digits/simclr\nweights: {folder}\ndata: {{std: [0.2, 0.2, 0.2]}}\n"
    )
    config = compose("mine.yaml").config
    assert config.data.std == (0.2, 0.2, 0.2)
    assert config.data.mean == (0.4, 0.5, 0.6)
    assert compose("mine.yaml", ["backbone=resnet34"]).config.backbone.name == "resnet34"


def test_a_run_starts_from_them_and_knows_their_hash(folder, tmp_path):
    keys = [f"weights={folder}", "max_steps=2", "batch_size=32", "views.0.size=32", "device=cpu"]
    config = compose("digits/simclr", keys, "runs/a").config
    pretrain(config, quiet=True)
    stored = json.loads((tmp_path / "runs/a/encoder.json").read_text())
    sha = with_hash(config).weights_sha256
    assert stored["pretrained_on"]["weights_sha256"] == sha
    pretrain(config, quiet=True)  # the same file continues
    torch.manual_seed(1)
    other = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, **ARGUMENTS)
    save_for_hf(other, tmp_path / "hub", model_args=ARGUMENTS, safe_serialization=True)
    with pytest.raises(UserError, match=rf"weights_sha256: {sha} -> "):
        pretrain(config, quiet=True)


# The hub, of which only the cache is at hand ------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of huggingface_hub with one model, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "models--timm--test_vit.r160_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    save_for_hf(model, place / "snapshots" / "abc", safe_serialization=True)

    import huggingface_hub

    fetch = huggingface_hub.hf_hub_download

    def without_network(repository, name, local_files_only=False):
        if not local_files_only:
            raise ConnectionError("no network")
        return fetch(repository, name, local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", without_network)
    return model


@pytest.mark.parametrize("kind", ["timm:", "timm:hf-hub:timm/"])
def test_the_cache_is_enough(cache, kind):
    weights = f"{kind}test_vit.r160_in1k"
    found = find_timm(weights)
    assert found.name == "test_vit"
    assert found.file.name == "model.safetensors"
    encoder = encoder_of(weights, 160)
    cache.reset_classifier(0)
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), cache.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            "timm:test_resnet.r160_in1k",
            "'model.safetensors' of 'timm/test_resnet.r160_in1k' is not in the cache and cannot be "
            "fetched (ConnectionError: no network); put it and config.json of huggingface.co/timm/"
            "test_resnet.r160_in1k into a folder, and set weights=timm:local-dir:FOLDER",
        ),
        ("timm:hf-hub:someone/else", "'config.json' of 'someone/else' is not in the cache"),
        ("timm:hf-hub:no repository", "'config.json' of 'no repository' is not in the cache"),
        ("timm:test_vit.r160_in1", "timm has no such weights. Did you mean 'test_vit.r160_in1k'"),
        ("timm:no_such_model", "timm has no such weights"),
        ("timm:resnet10", "timm has no such weights"),
        ("timm:local-dir:nowhere", "this folder needs config.json and model.safetensors or"),
    ],
)
def test_what_cannot_be_found_is_one_line(cache, weights, message):
    with pytest.raises(UserError) as error:
        compose("digits/simclr", [f"weights={weights}"])
    assert str(error.value).startswith(f"weights={weights}: ")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"architecture": 3, "pretrained_cfg": {}}', "\0"]
)
def test_a_folder_with_another_description_is_refused(folder, tmp_path, text):
    (tmp_path / "hub" / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not a description that timm wrote"):
        find_timm(folder)


def test_a_tag_alone_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"set weights=timm:resnet18.a1_in1k to start from them"):
        compose("digits/simclr", ["backbone.name=resnet18.a1_in1k"])
