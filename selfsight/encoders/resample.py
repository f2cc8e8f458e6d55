"""Weights for another number or size of patches, by timm's own functions."""

import re
import sys

from torch import Tensor, nn

# what depends on the number or on the size of the patches
_RESAMPLED = r"(.+\.)?(pos_embed\w*|patch_embed\.\w+\.weight|relative_position_bias_table)"


def resampled(tensors: dict[str, Tensor], backbone: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The tensors, with those for another number or size of patches made to fit the encoder.

    Args:
        tensors: a state dict in the encoder's own names.
    Returns: the tensors, and what was done as a part of a sentence; "" if nothing was. What timm
        has no function for stays as it is.
    """
    own = backbone.state_dict()
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
