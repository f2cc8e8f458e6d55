"""Weights that timm has by name: from a folder, from the hub's cache, and without a network."""

import json
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.foreign import load_foreign
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


def test_keys_of_the_encoder_beside_the_weights_stay(folder, tmp_path):
    """Those of the recipe below are of another model, but stochastic depth is of any."""
    (tmp_path / "mine.yaml").write_text(
        "base: digits/simclr\nbackbone: {drop_path: 0.2, options: {layers: [1, 1, 1, 2]}}\n"
    )
    keys = [f"weights={folder}", "backbone.options={global_pool: avg}"]
    for overrides in (keys, keys[::-1]):
        config = compose("mine.yaml", overrides).config.backbone
        assert config.options == {**ARGUMENTS, "global_pool": "avg"}
        assert (config.drop_path, config.small_images, config.stem_stride) == (0.2, False, 1)


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository, the folder of this name; its cache is empty."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    class Missing(EntryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    fetched: list[str] = []

    def download(repository, name, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        if not (tmp_path / repository / name).is_file():
            raise Missing
        fetched.append(name)
        return str(tmp_path / repository / name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


@pytest.mark.parametrize("parts", [False, True])
def test_a_repository_without_safetensors(hub, folder, tmp_path, parts):
    theirs = timm.create_model("local-dir:hub", pretrained=True, num_classes=0, img_size=64)
    state = load_file(tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/model.safetensors").unlink()
    halves = {"a.bin": list(state)[:9], "b.bin": list(state)[9:]}
    if parts:
        for file, names in halves.items():
            torch.save({name: state[name] for name in names}, tmp_path / "hub" / file)
        index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
        (tmp_path / "hub/pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, tmp_path / "hub/pytorch_model.bin")
    encoder = encoder_of("timm:hf-hub:hub", 64)
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    files = {"pytorch_model.bin.index.json", *halves} if parts else {"pytorch_model.bin"}
    assert set(hub) == {"config.json", *files}


def test_a_repository_of_transformers(hub, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, patch_size=8)).eval()
    model.save_pretrained(tmp_path / "hub")
    weights = "timm:hf-hub:hub"
    found = find_timm(weights)
    assert (found.mean, found.std) == (None, None)
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "hub/preprocessor_config.json").write_text(json.dumps(colours))
    assert compose("digits/simclr", [f"weights={weights}"]).config.data.mean == (0.1, 0.2, 0.3)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        right = model(x).pooler_output
        torch.testing.assert_close(encoder_of(weights, 32)(x), right, rtol=1e-5, atol=1e-5)

    import huggingface_hub

    download = huggingface_hub.hf_hub_download

    def broken(repository, name, local_files_only=False):
        if name == "preprocessor_config.json" and not local_files_only:
            raise ConnectionError("no network")
        return download(repository, name, local_files_only)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(UserError, match=r"'preprocessor_config.json' of 'hub' is not in the cache"):
        find_timm(weights)  # other colours would be other features


def test_the_cache_knows_what_a_repository_lacks(cache, tmp_path):
    """Without a network, a model of transformers without a description of its images loads."""
    place = tmp_path / "cache" / "models--someone--vit"
    for folder in ("refs", ".no_exist/abc", "snapshots/abc"):
        (place / folder).mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    (place / "snapshots/abc/config.json").write_text('{"model_type": "vit"}')
    (place / "snapshots/abc/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"'preprocessor_config.json' of .* cannot be fetched"):
        find_timm("timm:hf-hub:someone/vit")
    (place / ".no_exist/abc/preprocessor_config.json").touch()
    found = find_timm("timm:hf-hub:someone/vit")
    assert (found.name, found.mean, found.norm_eps) == ("vit_base_patch16_224", None, 1e-12)


def test_a_repository_without_weights(hub, tmp_path):
    (tmp_path / "hub").mkdir()
    for name, message in (("config.json", "config.json"), ("x", "model.safetensors or ")):
        with pytest.raises(UserError, match=f"'hub' has no {message}"):
            find_timm("timm:hf-hub:hub")
        (tmp_path / "hub" / name).write_text("{}")


def test_a_pickle_that_could_run_code_is_one_line(folder, tmp_path):
    (tmp_path / "hub/model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "hub/pytorch_model.bin")
    with pytest.raises(UserError, match="to unpickle it could run any code") as error:
        encoder_of(folder, 64)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(folder, tmp_path, dtype):
    path = tmp_path / "hub/model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path)
    encoder = encoder_of(folder, 32)  # resampled, too
    theirs = timm.create_model("local-dir:hub", pretrained=True, num_classes=0, img_size=32)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert encoder(x).dtype == torch.float32
        atol = 1e-5 if dtype == torch.float16 else 1e-3  # timm resamples in bfloat16
        torch.testing.assert_close(encoder(x), theirs.eval()(x), rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"architecture": 3, "pretrained_cfg": {}}', "\0"]
)
def test_a_folder_with_another_description_is_refused(folder, tmp_path, text):
    (tmp_path / "hub" / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not a description that timm or transformers wrote"):
        find_timm(folder)


def test_a_tag_alone_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"set weights=timm:resnet18.a1_in1k to start from them"):
        compose("digits/simclr", ["backbone.name=resnet18.a1_in1k"])


# Other sizes --------------------------------------------------------------------------------------

SHAPE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 7, "img_size": 56}
DYNAMIC = {"dynamic_img_size": True}


@pytest.mark.parametrize("patch", [7, 8])
@pytest.mark.parametrize("crop", [None, 24])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_dinov2", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("eva02_tiny_patch14_224", {}),  # positions that are added, and rotary ones
        ("vit_small_patch16_dinov3_qkvb", {}),  # rotary ones alone
        ("vit_small_patch16_rope_mixed_ape_224", {}),  # rotary ones that are learned
    ],
)
def test_other_sizes_give_the_features_of_timms_own_loading(name, options, crop, patch, tmp_path):
    """518 pixels at 224, and patches of 14 as patches of 16, on a small scale; and small crops
    beside the large ones, for which a model interpolates while it runs."""
    torch.manual_seed(0)
    given = timm.create_model(name, num_classes=0, **SHAPE, **options).eval()
    if given.pos_embed is not None:
        torch.nn.init.normal_(given.pos_embed)
    torch.save(given.state_dict(), tmp_path / "x.pth")
    side, crop = 4 * patch, crop and crop // 8 * patch
    more = {**SHAPE, **options, "patch_size": patch, "img_size": side, **(DYNAMIC if crop else {})}
    theirs = timm.create_model(name, num_classes=0, **more).eval()
    convert = sys.modules[type(theirs).__module__].checkpoint_filter_fn
    theirs.load_state_dict(convert(given.state_dict(), theirs))

    settings = {**SHAPE, **options, "patch_size": patch}
    del settings["img_size"]
    sizes = {"large": side} | ({"small": crop} if crop else {})
    ours = build_backbone(BackboneConfig(name=name, options=settings), sizes, seed=1).eval()
    made = load_foreign(tmp_path / "x.pth", ours, "timm", resample=True).resampled
    if getattr(ours, "pos_embed", None) is not None:
        assert "pos_embed from 1x" in made
    assert ("patch_embed.proj.weight from 24x3x7x7 to 24x3x8x8" in made) == (patch == 8)
    for size in sizes.values():
        x = torch.rand(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
