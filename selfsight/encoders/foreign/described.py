"""What transformers' config.json says of a Vision Transformer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsight.errors import UserError

CONFIG = "config.json"
# transformers' name of an activation -> timm's
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
# model_type -> values of keys that a file leaves out: those of transformers' configuration classes
_COMMON = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_DINOV2 = {**_COMMON, "mlp_ratio": 4, "layer_norm_eps": 1e-6, "patch_size": 14}
_VIT = {**_COMMON, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "patch_size": 16}
DEFAULTS: dict[str, dict[str, Any]] = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
    "vit": _VIT,
    "vit_mae": _VIT,
    "dinov3_vit": {
        **_VIT,
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "use_gated_mlp": False,
        "num_register_tokens": 0,
        "query_bias": True,
        "value_bias": True,
    },
}

_REGISTERED = ("dinov2_with_registers", "dinov3_vit")


@dataclass(frozen=True)
class Described:
    """A Vision Transformer of transformers.

    Attributes:
        width, depth, heads: of its blocks.
        hidden: width of the layer inside the MLP; of both halves each if it is gated.
        activation: timm's name.
        bias: of query, key and value; of DINOv3 of query and value.
        theta: base of the rotary positions; None: it has none.
    """

    model_type: str
    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool
    activation: str
    patch: int
    registers: int
    bias: bool
    eps: float
    theta: float | None = None


def read_json(file: Path) -> Any:
    """Raises: UserError if the file does not hold JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(
            f"'{file}': is not a description that timm or transformers wrote; fetch it again"
        ) from None


def describe_transformers(config: Any, file: Path) -> Described | None:
    """The model that this content of a config.json is about; None if transformers did not write it.

    Raises: UserError for a model that is not known, and for values that cannot be.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or "pretrained_cfg" in config:  # timm's
        return None
    if kind not in DEFAULTS:
        raise UserError(
            f"'{file}': model_type={kind} is none of those whose weights timm's models can take: "
            f"{', '.join(DEFAULTS)}; save its weights in timm's names"
        )
    return _described(kind, _Values(DEFAULTS[kind] | config, file))


class _Values:
    """The values of a config.json, checked. Raises: UserError."""

    def __init__(self, values: dict[str, Any], file: Path) -> None:
        self.values, self.file = values, file

    def number(self, key: str, low: float, high: float, whole: bool = True) -> Any:
        value = self.values.get(key)
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            kind = "whole number" if whole else "number"
            raise self.wrong(key, f"must be a {kind} from {low:g} to {high:g}")
        return value

    def flag(self, key: str) -> bool:
        if not isinstance(self.values.get(key), bool):
            raise self.wrong(key, "must be true or false")
        return self.values[key]

    def wrong(self, key: str, reason: str) -> UserError:
        return UserError(f"'{self.file}': {key}={self.values.get(key)}: {reason}")


def _described(kind: str, values: _Values) -> Described:
    given = values.values
    rotary = kind == "dinov3_vit"
    patch = given["patch_size"]
    if isinstance(patch, list) and len(set(map(str, patch))) == 1:
        values.values = given = {**given, "patch_size": patch[0]}
    rope = given.get("rope_parameters")  # where later versions keep it
    if rotary and isinstance(rope, dict) and "rope_theta" in rope:
        values.values = given = {**given, "rope_theta": rope["rope_theta"]}
    width = values.number("hidden_size", 1, 2**16)
    gated = values.flag("use_gated_mlp" if rotary else "use_swiglu_ffn")
    if "mlp_ratio" in given and "intermediate_size" not in given:
        hidden = int(width * values.number("mlp_ratio", 0.01, 64, whole=False))
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden
    else:
        hidden = values.number("intermediate_size", 1, 2**20)
    act = str(given["hidden_act"])
    if act not in ACTIVATIONS:
        raise values.wrong("hidden_act", f"known are {', '.join(ACTIVATIONS)}")
    if rotary and values.flag("query_bias") != values.flag("value_bias"):
        raise values.wrong("query_bias", "timm's model has the same for query and value")
    return Described(
        model_type=kind,
        width=width,
        depth=values.number("num_hidden_layers", 1, 1000),
        heads=values.number("num_attention_heads", 1, 1000),
        hidden=hidden,
        gated=gated,
        # DINOv2's gated MLP does not read hidden_act
        activation="silu" if gated and not rotary else ACTIVATIONS[act],
        patch=values.number("patch_size", 1, 1000),
        registers=values.number("num_register_tokens", 0, 1000) if kind in _REGISTERED else 0,
        bias=values.flag("query_bias" if rotary else "qkv_bias"),
        eps=values.number("layer_norm_eps", 1e-20, 0.5, whole=False),
        theta=float(values.number("rope_theta", 1e-3, 2**16, whole=False)) if rotary else None,
    )
