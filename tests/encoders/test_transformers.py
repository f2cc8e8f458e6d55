"""Vision Transformers of transformers and of Meta's repositories: their features, or a refusal."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfsight.encoders.artifact import weights_hash
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.encoder import load_encoder
from selfsight.encoders.foreign import load_foreign
from selfsight.encoders.foreign.described import DEFAULTS, describe_transformers
from selfsight.encoders.timm_weights import find_timm
from selfsight.encoders.transformers_models import backbone_for
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import open_target
from selfsight.methods import MAE
from selfsight.pretraining.build import with_hash
from selfsight.pretraining.config import compose
from tests.encoders.test_foreign import attack_tensor, shake

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

SIZE = 16
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 4,
}
MLP = {**SMALL, "intermediate_size": 96}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


def of(model: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return getattr(transformers, model)(getattr(transformers, config)(**values))

    return build


def dinov3(**values: Any) -> Callable[[], nn.Module]:
    return of("DINOv3ViTModel", "DINOv3ViTConfig", **MLP | {"num_register_tokens": 4} | values)


# name -> the model, and what must be left out of its file
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "dinov2": (of("Dinov2Model", "Dinov2Config", **SMALL), {"mask token": 1}),
    "dinov2, gated": (
        of("Dinov2Model", "Dinov2Config", **SMALL, use_swiglu_ffn=True, use_mask_token=False),
        {},
    ),
    "dinov2, classifier": (
        of("Dinov2ForImageClassification", "Dinov2Config", **SMALL, qkv_bias=False),
        {"mask token": 1, "classifier": 2},
    ),
    "dinov2, registers": (
        of("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **SMALL, num_register_tokens=3),
        {"mask token": 1},
    ),
    "dinov2, registers and classifier": (
        of(
            "Dinov2WithRegistersForImageClassification",
            "Dinov2WithRegistersConfig",
            **SMALL,
            use_swiglu_ffn=True,
            mlp_ratio=3,
        ),
        {"mask token": 1, "classifier": 2},
    ),
    "vit": (of("ViTModel", "ViTConfig", **MLP), {"pooler": 2}),
    "vit, classifier": (
        of("ViTForImageClassification", "ViTConfig", **MLP, hidden_act="gelu_new"),
        {"classifier": 2},
    ),
    "vit, masked images": (
        of("ViTForMaskedImageModeling", "ViTConfig", **MLP | {"encoder_stride": 4}, qkv_bias=False),
        {"mask token": 1, "decoder": 2},
    ),
    "mae": (of("ViTMAEForPreTraining", "ViTMAEConfig", **MLP, **DECODER), {"decoder": 24}),
    "mae, encoder": (of("ViTMAEModel", "ViTMAEConfig", **MLP | {"intermediate_size": 50}), {}),
    "dinov3": (dinov3(), {"mask token": 1}),
    "dinov3, gated": (
        dinov3(use_gated_mlp=True, hidden_act="silu", intermediate_size=52, rope_theta=50.0),
        {"mask token": 1},
    ),
    "dinov3, no biases": (dinov3(query_bias=False, value_bias=False), {"mask token": 1}),
}


def made(name: str) -> nn.Module:
    return shake(MODELS[name][0]())


def saved(model: nn.Module, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def encoder_for(folder: Path, size: int = SIZE, **keys: Any) -> nn.Module:
    """The encoder that the folder describes, with other weights."""
    config = BackboneConfig(**find_timm(str(folder)).backbone() | keys)
    return build_backbone(config, size, seed=7).eval()


def image(size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def theirs(model: nn.Module, x: Tensor) -> Tensor:
    """transformers' tokens after the last norm, of the encoder alone."""
    model = getattr(model, model.base_model_prefix, model) if "vit" in dir(model) else model
    model = getattr(model, "dinov2", getattr(model, "dinov2_with_registers", model))
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0
        noise = torch.arange(16.0).expand(len(x), -1)  # in the order of the patches
        return model(x, noise=noise).last_hidden_state
    return model(x).last_hidden_state


@torch.no_grad()
def check_features(ours: nn.Module, model: nn.Module) -> None:
    x = image()
    right = theirs(model, x)
    assert right.std() > 0.1  # an oracle that says something
    torch.testing.assert_close(ours.forward_features(x), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), right[:, 0], rtol=1e-5, atol=1e-5)


# Features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_transformers(name, tmp_path):
    model = made(name)
    folder = saved(model, tmp_path / "hub")
    ours = encoder_for(folder)
    with torch.no_grad():
        assert not torch.allclose(ours(image()), theirs(model, image())[:, 0], atol=0.1)
    loaded = load_foreign(folder, ours)
    check_features(ours, model)
    assert loaded.format == f"transformers-{name.partition(',')[0].replace('mae', 'vit')}"
    assert loaded.left_out == MODELS[name][1]
    assert loaded.used == len(ours.state_dict())
    assert "as config.json says: 2 attention heads, layer norm epsilon 1e-" in loaded.line()


@pytest.mark.parametrize("name", ["dinov2, gated", "dinov2, registers", "vit", "mae", "dinov3"])
def test_other_kinds_of_files_hold_the_same(name, tmp_path):
    """An older file of torch.save, and a state dict by the later names of the modules."""
    model = made(name)
    folder = saved(model, tmp_path / "hub")
    expected = encoder_for(folder)
    load_foreign(folder, expected)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for state in (tensors, model.state_dict(), {f"module.{k}": v for k, v in tensors.items()}):
        torch.save(state, folder / "pytorch_model.bin")
        ours = encoder_for(folder)
        load_foreign(folder, ours)
        assert weights_hash(ours) == weights_hash(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dinov2, registers", "dinov3"])
def test_half_precision_is_computed_in_single(name, dtype, tmp_path):
    folder = saved(made(name).to(dtype), tmp_path / "hub")
    ours = encoder_for(folder)
    load_foreign(folder, ours)
    whole = type(MODELS[name][0]()).from_pretrained(folder, dtype=torch.float32).eval()
    check_features(ours, whole)


def test_a_file_in_parts(tmp_path):
    model = made("vit, classifier")
    folder = saved(model, tmp_path / "hub", max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 1
    ours = encoder_for(folder)
    assert find_timm(str(folder)).file == index
    load_foreign(folder, ours)
    check_features(ours, model)

    config = compose("digits/simclr", [f"weights={folder}"], "runs/x").config
    sha = with_hash(config).weights_sha256
    tensors = load_file(files[0])
    save_file({k: v + 1 for k, v in tensors.items()}, files[0])
    assert with_hash(config).weights_sha256 != sha  # the index is the same
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, files[0])
    refusal(folder, ours, f"its tensors are not those that '{index.name}' says: {name}")
    files[0].unlink()
    refusal(folder, ours, f"'{files[0].name}' is not beside it")
    with pytest.raises(UserError, match="is not beside it"):
        with_hash(config)
    for text in ("[]", "{}", '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 3}}', "\\"):
        index.write_text(text)
        refusal(folder, ours, index.name)


# What no weight shows -----------------------------------------------------------------------------


def refusal(path: Path, model: nn.Module, *contains: str) -> str:
    """The one line of a refusal, which must leave the encoder as it was."""
    before = weights_hash(model)
    with pytest.raises(UserError) as error:
        load_foreign(path, model)
    assert weights_hash(model) == before
    line = str(error.value)
    assert "\n" not in line
    for text in contains:
        assert text in line, line
    return line


def rewritten(folder: Path, **values: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("vit", {"num_attention_heads": 4}, "set backbone.options={num_heads: 4}"),
        ("vit", {"layer_norm_eps": 1e-5}, "set backbone.norm_eps=1e-05"),
        ("vit", {"hidden_act": "quick_gelu"}, "set backbone.options={act_layer: quick_gelu}"),
        ("dinov3", {"rope_theta": 10.0}, "set backbone.options={rope_temperature: 10}"),
        ("dinov3", {"rope_parameters": {"rope_theta": 9}}, "options={rope_temperature: 9}"),
        ("dinov3", {"hidden_act": "relu"}, "timm's models of this kind have no other"),
    ],
)
def test_a_config_beside_the_file_that_says_otherwise_is_refused(name, values, message, tmp_path):
    model = made(name)
    folder = saved(model, tmp_path / "hub")
    ours = encoder_for(folder)
    rewritten(folder, **values)
    refusal(folder, ours, "in config.json beside it", "its features would differ", message)
    refusal(folder / "model.safetensors", ours, message)
    if "relu" not in str(values):  # the encoder that it describes loads
        load_foreign(folder, encoder_for(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "dinov2"}, "keep the files of two models in two folders"),
        ({"model_type": "clip"}, "model_type=clip is none of those whose weights"),
        ({"hidden_size": "wide"}, "hidden_size=wide: must be a whole number"),
        ({"layer_norm_eps": None}, "layer_norm_eps=None: must be a number"),
        ({"hidden_act": "mish"}, "hidden_act=mish: known are gelu"),
        ({"qkv_bias": 1}, "qkv_bias=1: must be true or false"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values, message, tmp_path):
    folder = saved(made("vit"), tmp_path / "hub")
    ours = encoder_for(folder)
    rewritten(folder, **values)
    refusal(folder, ours, message)
    if values != {"model_type": "dinov2"}:
        with pytest.raises(UserError, match=re.escape(message)) as error:
            compose("digits/simclr", [f"weights={folder}"])
        assert str(error.value).startswith(f"weights={folder}: ")


def test_without_a_config_what_is_not_known_is_said(tmp_path):
    for name, more in (("vit", ""), ("dinov3", ", base of rotary positions 100")):
        model = made(name)
        folder = saved(model, tmp_path / name)
        ours = encoder_for(folder)
        eps = "1e-12" if name == "vit" else "1e-05"
        (folder / "config.json").unlink()
        said = f"2 attention heads, layer norm epsilon {eps}, activation gelu{more}, on which the"
        assert f"{said} file is silent" in load_foreign(folder, ours).line()
        check_features(ours, model)


def test_features_that_are_not_the_class_token_are_said(tmp_path):
    folder = saved(made("dinov3"), tmp_path / "hub")
    keys = find_timm(str(folder)).options | {"global_pool": "avg"}
    line = load_foreign(folder, encoder_for(folder, options=keys)).line()
    assert "features by global_pool=avg where DINOv3's own are the class token" in line


def test_the_epsilon_of_layer_norms_changes_features(tmp_path):
    """Why it is held against the config: with small numbers the features are others."""
    model = made("vit")
    with torch.no_grad():
        model.embeddings.patch_embeddings.projection.weight.mul_(1e-3)
        for part in (model.embeddings.cls_token, model.embeddings.position_embeddings):
            part.mul_(1e-3)
        model.embeddings.patch_embeddings.projection.bias.mul_(1e-3)
    folder = saved(model, tmp_path / "hub")
    ours = encoder_for(folder)
    load_foreign(folder, ours)
    check_features(ours, model)
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        assert not torch.allclose(ours(image()), theirs(model, image())[:, 0], atol=1e-2)


def test_a_biased_key_of_dinov3_is_refused_unless_it_is_zero(tmp_path):
    model = shake(dinov3(key_bias=True)())
    folder = saved(model, tmp_path / "hub")
    ours = encoder_for(folder)
    refusal(folder, ours, "explain layer.0.attention.k_proj.bias, layer.1.attention.k_proj.bias;")
    with torch.no_grad():
        for layer in model.model.layer:
            layer.attention.k_proj.bias.zero_()
    loaded = load_foreign(saved(model, folder), ours)
    assert loaded.left_out == {"mask token": 1, "biases that are 0": 2}
    check_features(ours, model)


def test_biases_that_the_encoder_has_not_must_be_zero(tmp_path):
    model = made("dinov3")
    folder = saved(model, tmp_path / "hub")
    ours = encoder_for(folder, name="vit_small_patch16_dinov3")
    refusal(folder, ours, "does not explain layer.0.attention.q_proj.bias")
    with torch.no_grad():
        for layer in model.model.layer:
            layer.attention.q_proj.bias.zero_()
            layer.attention.v_proj.bias.zero_()
    loaded = load_foreign(saved(model, folder), ours)
    assert loaded.left_out == {"mask token": 1, "biases that are 0": 4}
    check_features(ours, model)


ATTACKED = ["dinov2, gated", "dinov2, registers", "vit", "mae, encoder", "dinov3"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*ATTACKED, "Meta's dinov3"]),
    attack=st.sampled_from(["gone", "renamed", "wider", "longer", "deeper", "integer", "extra"]),
    at=st.integers(0, 10_000),
)
def test_a_file_that_is_not_whole_is_refused(name, attack, at, attacked):
    folder, state, ours = attacked(name)
    keys = [k for k in state if not re.search("mask|pooler|local_cls|periods", k)]
    key = keys[at % len(keys)]
    attack_tensor(state, key, attack)
    torch.save(state, folder / "attacked.pth")
    refusal(folder / "attacked.pth", ours, "attacked.pth")


def check_fits(folder: Path, state: dict[str, Tensor], ours: nn.Module) -> None:
    torch.save(state, folder / "whole.pth")
    load_foreign(folder / "whole.pth", ours)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    found: dict[str, Any] = {}

    def get(name: str) -> tuple[Path, dict[str, Tensor], nn.Module]:
        if name not in found:
            model = made(name.removeprefix("Meta's "))
            folder = saved(model, tmp_path_factory.mktemp("attacked") / "hub")
            ours = encoder_for(folder)
            found[name] = folder, load_file(folder / "model.safetensors"), ours
            if name.startswith("Meta's "):
                found[name] = folder, dinov3_file(folder, False), ours
            check_fits(*found[name])  # as it is, it fits
        folder, state, ours = found[name]
        return folder, dict(state), ours

    return get


def test_the_defaults_are_those_of_transformers():
    classes = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "vit": "ViT"}
    classes |= {"vit_mae": "ViTMAE", "dinov3_vit": "DINOv3ViT"}
    for kind, values in DEFAULTS.items():
        config = getattr(transformers, f"{classes[kind]}Config")().to_dict()
        assert {k: v for k, v in values.items() if k in config and config[k] != v} == {}
        assert {"hidden_size", "layer_norm_eps", "hidden_act"} <= values.keys() & config.keys()


# timm's names -------------------------------------------------------------------------------------


def sized(width: int, depth: int, heads: int, **values: Any) -> dict[str, Any]:
    keys = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return keys | values


DINOV3 = {"model_type": "dinov3_vit", "num_register_tokens": 4}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


@pytest.mark.parametrize(
    ("config", "name"),
    [  # the values in the published config.json
        (sized(384, 12, 6, model_type="dinov2"), "vit_small_patch14_dinov2"),
        (
            sized(1536, 40, 24, model_type="dinov2", use_swiglu_ffn=True),
            "vit_giant_patch14_dinov2",
        ),
        (
            sized(1024, 24, 16, model_type="dinov2_with_registers", patch_size=14),
            "vit_large_patch14_reg4_dinov2",
        ),
        (sized(768, 12, 12, model_type="vit"), "vit_base_patch16_224"),
        (sized(384, 12, 6, model_type="vit", intermediate_size=1536), "vit_small_patch16_224"),
        (
            sized(1280, 32, 16, model_type="vit_mae", intermediate_size=5120, patch_size=14),
            "vit_huge_patch14_224",
        ),
        (sized(384, 12, 6, **DINOV3), "vit_small_patch16_dinov3_qkvb"),
        (sized(384, 12, 6, **DINOV3, **GATED), "vit_small_plus_patch16_dinov3_qkvb"),
        (
            sized(1280, 32, 20, **DINOV3, **GATED, intermediate_size=5120),
            "vit_huge_plus_patch16_dinov3_qkvb",
        ),
        (
            sized(4096, 40, 32, **DINOV3, **GATED, intermediate_size=8192)
            | {"query_bias": False, "value_bias": False},
            "vit_7b_patch16_dinov3",
        ),
    ],
)
def test_published_models_are_timms_by_name(config, name):
    found = backbone_for(describe_transformers(config, Path("config.json")))
    assert found["name"] == name
    pool = {"global_pool": "token"} if "dinov3" in name else {}
    assert found["options"] == pool
    assert found.get("norm_eps") == (1e-12 if config["model_type"].startswith("vit") else None)


# Meta's own layouts -------------------------------------------------------------------------------

TO_DINOV3 = (
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)


def renamed(state: dict[str, Tensor], renames: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    for pattern, new in renames:
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    return state


def dinov3_file(folder: Path, gated: bool) -> dict[str, Tensor]:
    """transformers' file as facebookresearch/dinov3 lays it out: vision_transformer.py,
    layers/attention.py (LinearKMaskedBias), layers/rope_position_encoding.py."""
    state = load_file(folder / "model.safetensors")
    mlp = (("gate_proj", "w1"), ("up_proj", "w2"), ("down_proj", "w3"))
    mlp = mlp if gated else (("up_proj", "fc1"), ("down_proj", "fc2"))
    state = renamed(state, (*TO_DINOV3, *((rf"\.mlp\.{a}\.", f".mlp.{b}.") for a, b in mlp)))
    for block in ("blocks.0", "blocks.1"):
        q, k, v = (state.pop(f"{block}.attention.{part}_proj.weight") for part in "qkv")
        state[f"{block}.attn.qkv.weight"] = torch.cat([q, k, v])
        q, v = (state.pop(f"{block}.attention.{part}_proj.bias") for part in "qv")
        # the mask makes the key's bias 0, whatever it is
        state[f"{block}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, 7.0), v])
        one = torch.ones_like(q)
        state[f"{block}.attn.qkv.bias_mask"] = torch.cat([one, 0 * one, one])
    state["mask_token"] = state["mask_token"][0]
    state["rope_embed.periods"] = (100.0 ** (torch.arange(3) / 3)).bfloat16().float()
    state["local_cls_norm.weight"] = torch.ones(24)
    return state


def plain_dinov3(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The class token by the paper (2508.10104) in double precision: patches of 4 pixels, 2
    heads of 12; queries and keys of patches turn by 2 pi times their centre, in [-1, 1], over each
    of 3 periods."""
    w = {key: value.double() for key, value in state.items()}
    x = x.double().unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 48)
    x = x @ w["patch_embed.proj.weight"].reshape(24, 48).T + w["patch_embed.proj.bias"]
    prefix = torch.cat([w["cls_token"], w["storage_tokens"]], 1).expand(2, -1, -1)
    x = torch.cat([prefix, x], 1)
    centre = (torch.arange(4).double() + 0.5) / 4 * 2 - 1
    periods = 100.0 ** (torch.arange(3).double() / 3)
    angle = torch.zeros(5 + 16, 6).double()  # the class token and registers stay
    for row in range(4):
        for column in range(4):
            places = (centre[row], centre[column])
            turns = [2 * math.pi * place / periods for place in places]
            angle[5 + 4 * row + column] = torch.cat(turns)

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def turned(x: Tensor) -> Tensor:  # (B, N, 12): its halves are the two parts of 6 numbers
        a, b = x[..., :6], x[..., 6:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    for block in ("blocks.0", "blocks.1"):
        h = norm(x, f"{block}.norm1")
        bias = w[f"{block}.attn.qkv.bias"] * w[f"{block}.attn.qkv.bias_mask"]
        qkv = (h @ w[f"{block}.attn.qkv.weight"].T + bias).reshape(2, 21, 3, 2, 12)
        heads = []
        for head in range(2):
            q, k, v = (qkv[:, :, part, head] for part in range(3))
            scores = turned(q) @ turned(k).transpose(1, 2) / math.sqrt(12)
            heads.append(scores.softmax(-1) @ v)
        h = torch.cat(heads, -1) @ w[f"{block}.attn.proj.weight"].T + w[f"{block}.attn.proj.bias"]
        x = x + h * w[f"{block}.ls1.gamma"]
        h = norm(x, f"{block}.norm2")
        h = h @ w[f"{block}.mlp.fc1.weight"].T + w[f"{block}.mlp.fc1.bias"]
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        h = h @ w[f"{block}.mlp.fc2.weight"].T + w[f"{block}.mlp.fc2.bias"]
        x = x + h * w[f"{block}.ls2.gamma"]
    return norm(x, "norm")[:, 0]


@pytest.mark.parametrize("entry", [None, "teacher"])
@pytest.mark.parametrize("gated", [False, True])
def test_the_files_of_dinov3(gated, entry, tmp_path):
    values = {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    model = shake(dinov3(**values)())
    folder = saved(model, tmp_path / "hub")
    ours, state = encoder_for(folder), dinov3_file(folder, gated)
    file: dict[str, Any] = dict(state)
    if entry:  # what its training writes
        file = {"teacher": {f"backbone.{k}": v for k, v in state.items()}}
        file["teacher"]["dino_head.last_layer.weight"] = torch.zeros(2, 2)
    torch.save(file, tmp_path / "x.pth")
    loaded = load_foreign(tmp_path / "x.pth", ours)
    check_features(ours, model)
    if not gated:
        with torch.no_grad():
            right = plain_dinov3(state, image())
            torch.testing.assert_close(ours(image()).double(), right, rtol=1e-5, atol=1e-5)
    parts = {"mask token": 1, "periods of rotary positions": 1, "norm of local crops": 1}
    parts |= {"biases that are 0": 2} | ({"projector": 1} if entry else {})
    assert loaded.format == "dinov3"
    assert loaded.left_out == parts
    assert re.search(
        r"; rotary positions by periods of single precision, up to 0\.\d%", loaded.line()
    )


def test_dinov3s_file_that_is_not_of_this_encoder(tmp_path):
    folder = saved(made("dinov3"), tmp_path / "hub")
    ours, state = encoder_for(folder), dinov3_file(folder, False)
    path = tmp_path / "x.pth"

    def change(**values: Any) -> Path:
        changed = {k: v for k, v in (state | values).items() if v is not None}
        torch.save(changed, path)
        return path

    periods = {"rope_embed.periods": 50.0 ** (torch.arange(3) / 3)}
    refusal(change(**periods), ours, "set backbone.options.rope_temperature to the base")
    periods = {"rope_embed.periods": 100.0 ** (torch.arange(6) / 6)}
    refusal(change(**periods), ours, "set backbone.options={num_heads: 1}")
    bad = {"rope_embed.periods": torch.full((3,), torch.nan)}
    refusal(change(**bad), ours, "rotary positions")
    # a bias of the key that no mask makes 0
    refusal(change(**{"blocks.0.attn.qkv.bias_mask": None}), ours, "blocks.0.attn.k_bias")
    mask = {"blocks.0.attn.qkv.bias_mask": torch.ones(72)}
    refusal(change(**mask), ours, "blocks.0.attn.k_bias")
    mask = {"blocks.0.attn.qkv.bias_mask": torch.full((72,), torch.nan)}  # as it is before training
    refusal(change(**mask), ours, "not finite")
    other = encoder_for(folder, options=find_timm(str(folder)).options | {"rope_type": "cat"})
    refusal(change(), other, "its positions are DINOv3's rotary ones")


TO_MAE = (
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.embeddings\.", ""),
    (r"^vit\.encoder\.layer\.", "blocks."),
    (r"^decoder\.(?:decoder_encoder\.layer|decoder_layers)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^vit\.layernorm\.", "norm."),
)


def test_the_files_of_mae(tmp_path):
    """facebookresearch/mae: models_mae.py. Its positions begin with the column, not the row; an
    encoder keeps those that it was trained with, in a further training by MAE, too."""
    build = of("ViTMAEForPreTraining", "ViTMAEConfig", **MLP, **DECODER, layer_norm_eps=1e-6)
    model = build()
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    model.vit.embeddings.initialize_weights()  # which transformers leaves out
    fixed = model.vit.embeddings.position_embeddings.detach().clone()
    model = shake(model)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.copy_(fixed)
    state = renamed(load_file(saved(model, tmp_path / "hub") / "model.safetensors"), TO_MAE)
    for key in [key for key in state if ".attention.attention.query." in key]:
        kind = key.rpartition(".")[2]
        parts = [key.replace("query", part) for part in ("query", "key", "value")]
        whole = key.replace("attention.attention.query", "attn.qkv")
        state[whole] = torch.cat([state.pop(part) for part in parts])
        assert whole.endswith(kind)
    torch.save({"model": state}, tmp_path / "x.pth")
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    config = BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, options=options)
    ours = build_backbone(config, SIZE, seed=7).eval()
    assert load_foreign(tmp_path / "x.pth", ours).format == "mae"
    check_features(ours, model)
    method = MAE(ours)
    assert torch.equal(method.backbone.pos_embed, fixed)
    assert not method.backbone.pos_embed.requires_grad
    fresh = MAE(build_backbone(config, SIZE, seed=7)).backbone.pos_embed
    halves = fresh[..., 12:], fresh[..., :12]
    torch.testing.assert_close(torch.cat(halves, -1), fixed)  # the same, with the axes exchanged


# In a run -----------------------------------------------------------------------------------------


def test_a_folder_says_which_model_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(made("dinov2, registers"), tmp_path / "hub")
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "hub/preprocessor_config.json").write_text(json.dumps(colours))
    for weights in ("hub", "timm:local-dir:hub"):
        config = compose("digits/simclr", [f"weights={weights}"]).config
        assert config.backbone.name == "vit_small_patch14_reg4_dinov2"
        assert config.backbone.options["reg_tokens"] == 3
        assert (config.data.mean, config.data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    # what the user sets stays
    keys = ["weights=hub", "backbone.patch_size=8", "backbone.options.depth=1", "data.std=[1,1,1]"]
    found = compose("digits/simclr", keys)
    assert found.config.backbone.patch_size == 8
    assert found.config.backbone.options["depth"] == 1
    assert found.config.backbone.options["embed_dim"] == 24
    assert not found.config.backbone.small_images  # of the recipe's ResNet
    assert found.config.data.std == (1, 1, 1)
    assert found.origins.of("backbone.options.depth") == "command line"
    assert found.origins.of("backbone.options.embed_dim") == "weights=hub"
    config = compose("digits/simclr", ["weights=hub", "backbone=resnet34"]).config
    assert config.backbone.options == {}
    (tmp_path / "hub/preprocessor_config.json").unlink()
    assert compose("digits/simclr", ["weights=hub"]).config.data.mean == (
        compose("digits/simclr").config.data.mean
    )


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"do_normalize": False}, ((0, 0, 0), (1, 1, 1))),
        ({"do_rescale": False}, "pixels are not scaled to [0, 1]"),
        ({"rescale_factor": 1 / 127.5}, "pixels are not scaled to [0, 1]"),
        ({"image_mean": "x"}, "is not a description"),
    ],
)
def test_how_images_were_prepared(about, expected, tmp_path):
    folder = saved(made("vit"), tmp_path / "hub")
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | about
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            find_timm(str(folder))
    else:
        found = find_timm(str(folder))
        assert (found.mean, found.std) == expected


@pytest.mark.parametrize("name", ["vit", "dinov3"])
def test_a_run_starts_from_a_folder_and_says_what_was_adapted(name, tmp_path, command):
    model = made(name)
    saved(model, tmp_path / "hub")
    keys = [
        "weights=hub",
        "batch_size=32",
        "views.0.size=24",
        "device=cpu",
        "backbone.patch_size=8",
    ]
    run = ["pretrain", "digits/simclr", *keys, "--run", "run"]
    done = command(*run, "max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    what = "patch_embed.proj.weight from 24x3x4x4 to 24x3x8x8"
    what = f"pos_embed from 1x17x24 to 1x10x24, {what}" if name == "vit" else what
    assert f"resampled: {what}" in said
    assert "no preprocessor_config.json says what its images were normalised with" in said
    about = json.loads((tmp_path / "run/encoder.json").read_text())
    assert about["pretrained_on"]["adapted"] == f"resampled: {what}"
    assert about["backbone"].get("norm_eps") == (1e-12 if name == "vit" else None)
    trained = load_encoder(tmp_path / "run")  # built again, with the same epsilon
    assert trained.backbone.norm.eps == model.config.layer_norm_eps
    # a file alone names no model
    file = ["weights=hub/model.safetensors", "views.0.size=24", "--run", "other"]
    done = command("pretrain", "digits/simclr", *file, cwd=tmp_path)
    assert done.returncode == 2
    assert "weights=hub builds the encoder that its config.json describes" in done.stderr


def test_a_folder_is_evaluated_as_it_describes_itself(tmp_path, command):
    model = made("vit")
    saved(model, tmp_path / "hub")
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "hub/preprocessor_config.json").write_text(json.dumps(colours))
    keys = ["data.source=digits", "image_size=16", "device=cpu"]
    done = command("knn", "hub", *keys, "--run", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "as config.json says: 2 attention heads" in " ".join(done.stderr.split())
    target = open_target(tmp_path / "hub", ["image_size=16"], None)
    assert target.base == {"data": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    check_features(target.encoder.build().eval(), model)
    with pytest.raises(UserError, match="set the image size of the pretraining: image_size=16"):
        open_target(tmp_path / "hub", ["image_size=32"], None)
