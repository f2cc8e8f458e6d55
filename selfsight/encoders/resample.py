"""Weights for another number or size of patches, or of channels, by timm's own functions."""

import re
import sys

from torch import Tensor, nn

# what depends on the number or on the size of the patches
_RESAMPLED = r"(.+\.)?(pos_embed\w*|patch_embed\.\w+\.weight|relative_position_bias_table)"


def resampled(tensors: dict[str, Tensor], backbone: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The tensors, with those for RGB and for another number or size of patches made to fit the
    encoder.

    Args:
        tensors: a state dict in the encoder's own names.
    Returns: the tensors, and what was done as a part of a sentence; "" if nothing was. What timm
        has no function for stays as it is.
    """
    own = backbone.state_dict()
    tensors, adapted = _with_channels(tensors, own)
    tensors, made = _with_patches(tensors, own, backbone)
    return tensors, "; ".join(part for part in (adapted, made) if part)


def _with_channels(
    tensors: dict[str, Tensor], own: dict[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """With a first convolution of RGB repeated, or summed for one channel, so that its output
    keeps its size."""
    found = [k for k in own if k in tensors and _is_rgb(tensors[k], own[k])]
    if len(found) != 1 or not tensors[found[0]].isfinite().all():  # only the first sees the image
        return tensors, ""
    from timm.models._manipulate import adapt_input_conv

    (key,) = found
    made = adapt_input_conv(own[key].shape[1], tensors[key])
    line = f"adapted from RGB: {key} from {_shape(tensors[key])} to {_shape(made)}"
    return {**tensors, key: made}, line


def _is_rgb(given: Tensor, own: Tensor) -> bool:
    """Whether this is a convolution of three channels, and the encoder's has others."""
    if given.ndim != 4 or own.ndim != 4 or own.shape[1] == 3:
        return False
    return given.shape[1] == 3 and given.shape[0] == own.shape[0]


def _with_patches(
    tensors: dict[str, Tensor], own: dict[str, Tensor], backbone: nn.Module
) -> tuple[dict[str, Tensor], str]:
    other = [k for k in own if k in tensors and tensors[k].shape != own[k].shape]
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    possible = all(re.fullmatch(_RESAMPLED, k) and tensors[k].isfinite().all() for k in other)
    if not other or convert is None or not possible:
        return tensors, ""
    try:
        made = convert(
            {k: tensors[k].float() if k in other else v for k, v in tensors.items()}, backbone
        )
    except Exception:  # timm's functions assume a square grid and raise anything
        return tensors, ""
    if any(k not in made or made[k].shape != own[k].shape for k in other):
        return tensors, ""
    shown = [f"{k} from {_shape(tensors[k])} to {_shape(own[k])}" for k in other[:2]]
    more = f" and {len(other) - 2} more" if len(other) > 2 else ""
    return {**tensors, **{k: made[k] for k in other}}, f"resampled: {', '.join(shown)}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
