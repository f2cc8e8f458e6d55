"""What changes the features and leaves no trace in the weights: held against the encoder where a
format, or a config.json beside the file, is known to say it, and stated where nothing does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from selfsight.encoders.foreign.adapt import Fit
from selfsight.encoders.foreign.described import (
    CONFIG,
    Described,
    describe_transformers,
    read_json,
)
from selfsight.encoders.foreign.format import Format
from selfsight.encoders.foreign.formats import FORMATS
from selfsight.errors import UserError

BFLOAT16 = 2.0**-8  # what rounding to it may change, of the value


@dataclass(frozen=True)
class Beyond:
    """What no weight shows.

    Attributes:
        heads: attention heads of a ViT, as built.
        silent: other properties of the encoder, of which the file says nothing.
        beside: properties that a config.json beside the file confirmed.
        others: where the encoder knowingly differs from the model that the file was written of.
    """

    heads: int | None = None
    silent: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def line(self) -> str:
        """The same as a part of a sentence; "": nothing to say."""
        silent = self.silent
        if self.heads and not self.beside:
            silent = (f"{self.heads} attention heads", *silent)
        text = f"; {', '.join(silent)}, on which the file is silent" if silent else ""
        text += f"; as {CONFIG} says: {', '.join(self.beside)}" if self.beside else ""
        return "; ".join((text, *self.others))


def check_beyond(path: Path, found: Fit, backbone: nn.Module) -> Beyond:
    """Raises: UserError if the encoder would compute something else from the same weights."""
    format = FORMATS[found.format]
    _check_stem(path, found.format, format, backbone)
    heads = _heads(backbone)
    right = dict(format.heads).get(getattr(backbone, "embed_dim", None), heads)
    if heads != right:
        raise UserError(
            f"'{path}': {found.format} has {right} attention heads at this width, this encoder "
            f"{heads}; set backbone.options={{num_heads: {right}}}"
        )
    if not format.model_types and not format.rotary:
        return Beyond(heads)
    described = _beside(path, format)
    others = _check_rotary(path, found, backbone, described) if format.rotary else ()
    facts = [f"layer norm epsilon {_epsilon(backbone):g}", f"activation {_activation(backbone)}"]
    if format.rotary and found.periods is None:
        facts.append(f"base of rotary positions {backbone.rope.temperature:g}")
    if described is None:
        return Beyond(heads, tuple(facts), others=others)
    _check_described(path, backbone, described)
    return Beyond(heads, beside=(f"{heads} attention heads", *facts), others=others)


def _check_stem(path: Path, name: str, format: Format, backbone: nn.Module) -> None:
    stem, end = getattr(backbone, "conv1", None), getattr(backbone, "act1", None)
    if isinstance(stem, nn.Conv2d) and stem.kernel_size == (3, 3):
        pads = (format.stem_padding, format.stem_padding)
        if stem.padding != pads:
            raise UserError(
                f"'{path}': {name} pads a 3x3 stem by {pads[0]}, this encoder by "
                f"{stem.padding[0]}, so its features would differ; "
                f"set backbone.stem_padding={pads[0]}"
            )
    if end is not None and isinstance(end, nn.Identity) == format.stem_relu:
        has, wanted = ("a ReLU", "true") if format.stem_relu else ("no ReLU", "false")
        raise UserError(
            f"'{path}': {name} has {has} after the stem, unlike this encoder, so its "
            f"features would differ; set backbone.stem_relu={wanted}"
        )


def _beside(path: Path, format: Format) -> Described | None:
    """What a config.json of transformers in the folder of the file says; None without one."""
    file = path.parent / CONFIG
    if not format.model_types or not file.is_file():
        return None
    described = describe_transformers(read_json(file), file)
    if described and described.model_type not in format.model_types:
        raise UserError(
            f"'{path}': its tensors are those of model_type={' or '.join(format.model_types)}, but "
            f"'{file}' says {described.model_type}; keep the files of two models in two folders"
        )
    return described


def _check_described(path: Path, backbone: nn.Module, described: Described) -> None:
    eps, act, heads = _epsilon(backbone), _activation(backbone), _heads(backbone)
    if heads != described.heads:
        remedy = f"backbone.options={{num_heads: {described.heads}}}"
        _differs(path, "attention heads", described.heads, heads, f"set {remedy}")
    if eps != described.eps:
        remedy = f"set backbone.norm_eps={described.eps:g}"
        _differs(path, "the layer norm's epsilon", described.eps, eps, remedy)
    if act != described.activation:
        remedy = f"set backbone.options={{act_layer: {described.activation}}}"
        if described.theta is not None:
            remedy = "timm's models of this kind have no other"
        _differs(path, "the activation", described.activation, act, remedy)


def _differs(path: Path, what: str, wanted: Any, here: Any, remedy: str) -> NoReturn:
    raise UserError(
        f"'{path}': {what} in {CONFIG} beside it: {wanted}; in this encoder: {here}, so its "
        f"features would differ; {remedy}"
    )


def _check_rotary(
    path: Path, found: Fit, backbone: nn.Module, described: Described | None
) -> tuple[str, ...]:
    """DINOv3's rotary positions, and the features that are meant. Returns: what is other here."""
    rope = getattr(backbone, "rope", None)
    kind = type(rope).__name__
    if kind != "RotaryEmbeddingDinoV3" or not rope.rotate_half or rope.grid_indexing != "ij":
        raise UserError(
            f"'{path}': its positions are DINOv3's rotary ones, and this encoder's are not, so its "
            f"features would differ; set backbone.name to one of timm's with dinov3 in the name"
        )
    theta, others = rope.temperature, []
    if described is not None and described.theta is not None and theta != described.theta:
        remedy = f"set backbone.options={{rope_temperature: {described.theta:g}}}"
        _differs(path, "the base of the rotary positions", described.theta, theta, remedy)
    if found.periods is not None:
        others += _check_periods(path, found.periods, rope.periods, backbone)
    if getattr(backbone, "global_pool", "") != "token":
        others.append(
            f"features by global_pool={backbone.global_pool} where DINOv3's own are the class "
            f"token (backbone.options={{global_pool: token}})"
        )
    return tuple(others)


def _check_periods(path: Path, given: Tensor, own: Tensor, backbone: nn.Module) -> list[str]:
    """The periods in the file are those of the encoder; the published ones are rounded."""
    if given.ndim == 1 and len(given) != len(own) and len(given):
        heads = backbone.embed_dim // (4 * len(given))
        raise UserError(
            f"'{path}': its rotary positions are those of {heads} attention heads, this encoder "
            f"has {_heads(backbone)}; set backbone.options={{num_heads: {heads}}}"
        )
    apart = (given.double() / own.double() - 1).abs().max().item()
    if not apart <= BFLOAT16:
        raise UserError(
            f"'{path}': the periods of its rotary positions are not those of this encoder, so its "
            f"features would differ; set backbone.options.rope_temperature to the base that it was "
            f"trained with (pos_embed_rope_base)"
        )
    if apart < 1e-6:
        return []
    return [
        f"rotary positions by periods of single precision, up to {apart:.1%} from its rounded ones"
    ]


def _heads(backbone: nn.Module) -> int | None:
    """Attention heads of a plain ViT."""
    blocks = getattr(backbone, "blocks", None)
    attention = getattr(blocks[0], "attn", None) if _listed(blocks) else None
    return getattr(attention, "num_heads", None)


def _listed(blocks: Any) -> bool:
    return isinstance(blocks, (nn.Sequential, nn.ModuleList)) and len(blocks) > 0


def _epsilon(backbone: nn.Module) -> float:
    """Of the layer norms; NaN if they differ or if there are none."""
    found = {module.eps for module in backbone.modules() if isinstance(module, nn.LayerNorm)}
    return found.pop() if len(found) == 1 else float("nan")


def _activation(backbone: nn.Module) -> str:
    """timm's name of the activation in the MLP of a ViT, found by its values."""
    from timm.layers import get_act_layer

    blocks = getattr(backbone, "blocks", None)
    act = getattr(getattr(blocks[0], "mlp", None), "act", None) if _listed(blocks) else None
    x = torch.linspace(-4, 4, 33)
    for name in ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu"):
        if act is not None and torch.allclose(act(x), get_act_layer(name)()(x), atol=1e-6):
            return name
    return type(act).__name__
