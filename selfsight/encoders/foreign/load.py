"""Fill an encoder with the weights of another library's checkpoint, strictly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfsight.config import near
from selfsight.encoders.foreign.adapt import Fit, adapt, recognised
from selfsight.encoders.foreign.formats import FORMATS
from selfsight.encoders.foreign.read import read
from selfsight.encoders.resample import resampled
from selfsight.errors import UserError, some


@dataclass(frozen=True)
class Loaded:
    """What went into the encoder.

    Attributes:
        format: name in FORMATS.
        used: tensors of the checkpoint that went into the encoder: all that it has, except for
            batch norm's counters of steps where the format lacks them.
        left_out: what was deliberately not used: part of the training -> number of tensors.
        heads: attention heads of a ViT, as built; a checkpoint does not contain their number.
        resampled: what was made to fit another number of patches or channels; "": nothing.
    """

    format: str
    used: int
    left_out: dict[str, int] = field(default_factory=dict)
    heads: int | None = None
    resampled: str = ""

    def line(self) -> str:
        """The same as a sentence."""
        parts = ", ".join(f"{part} {count}" for part, count in self.left_out.items())
        rest = f"left out: {parts}" if parts else "nothing left out"
        heads = f"; {self.heads} attention heads, on which the file is silent" if self.heads else ""
        made = f"; {self.resampled}" if self.resampled else ""
        return f"{self.format}: {self.used} tensors used; {rest}{heads}{made}"


def load_foreign(
    path: str | Path, backbone: nn.Module, format: str | None = None, resample: bool = False
) -> Loaded:
    """Fill the encoder with the weights of a checkpoint that another library wrote.

    Every tensor of the encoder is in the file with equal shape, and every tensor of the file is
    used or belongs to a part that its format leaves out. If anything is
    wrong, the encoder stays as it is. What leaves no trace in the weights (padding, activation,
    attention heads, how pixels were normalised) is checked only where a format is known for it.

    Args:
        path: a file of torch.save (read without running code from it), or .safetensors.
        backbone: a timm model without classifier, as `build_backbone` makes it.
        format: name in FORMATS; by default recognised from the keys.
        resample: make positions and patch embeddings of a ViT fit, if the file's are for another
            number or size of patches, and a first convolution of RGB, if the images have other
            channels. A frozen encoder is measured without it.
    Raises: UserError if the file cannot be read, or is of no format, or of several that read it
        differently, or does not fit the encoder in full.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        hint = near(format, FORMATS) or f" Known: {', '.join(FORMATS)}."
        raise UserError(f"format={format}: no such format of checkpoints.{hint}")
    own = backbone.state_dict()
    found = _choose(path, read(path), own, format, backbone if resample else None)
    if found.problems:
        raise UserError(f"'{path}': {_what_is_wrong(found, own, backbone)}")
    heads = _check_beyond(path, found, backbone)
    # What own adds are the counters that the format lacks; for all else the file has a tensor.
    backbone.load_state_dict({**own, **found.used}, strict=True)
    backbone.weights_were_loaded = True  # so a method keeps their positions
    return Loaded(found.format, len(found.used), dict(found.left_out), heads, found.resampled)


def _choose(
    path: Path,
    file: Mapping[Any, Any],
    own: dict[str, Tensor],
    format: str | None,
    resample_for: nn.Module | None,
) -> Fit:
    """The one way to read the file; of formats that find the same tensors, the best is meant."""
    ways: dict[Any, Fit] = {}
    for name in [format] if format else recognised(file):
        found = adapt(file, name, own)
        if resample_for is not None and found.shapes:
            made, found.resampled = resampled({**found.used, **found.shapes}, resample_for)
            found.used = {k: v for k, v in made.items() if v.shape == own[k].shape}
            found.shapes = {k: v for k, v in made.items() if k not in found.used}
        way = (found.entry, frozenset(found.keys.items()))
        if way not in ways or found.problems < ways[way].problems:
            ways[way] = found
    if all(found.entry is None for found in ways.values()):
        read_as = f"not of format={format}" if format else "of no known format"
        raise UserError(
            f"'{path}': {read_as}; it begins with {some(_keys(file))}; name another format "
            f"({', '.join(FORMATS)}), or re-save the encoder alone in timm's names"
        )
    candidates = [found for found in ways.values() if not found.problems] or list(ways.values())
    if len(candidates) > 1:
        names = " or ".join(f"format={found.format}" for found in candidates)
        raise UserError(f"'{path}': could be of several formats; say which: {names}")
    return candidates[0]


def _keys(file: Mapping[Any, Any]) -> list[str]:
    """The names of tensors, those of an entry behind the entry's."""
    keys = []
    for key, value in file.items():
        if isinstance(value, Tensor):
            keys.append(str(key))
        elif isinstance(value, Mapping):
            keys += [f"{key}: {k}" for k, v in value.items() if isinstance(v, Tensor)]
    return keys


def _what_is_wrong(found: Fit, own: dict[str, Tensor], backbone: nn.Module) -> str:
    """One line: format, how many matched, the first of what did not, remedy."""
    problems = []
    if found.missing:
        problems.append(f"the file lacks {some(found.missing)}")
    if found.shapes:
        shapes = [
            f"{k} {tuple(value.shape)}, here {tuple(own[k].shape)}"
            for k, value in found.shapes.items()
        ]
        problems.append(f"of other shape: {some(shapes)}")
    if found.unknown:
        problems.append(f"the format does not explain {some(found.unknown)}")
    if found.not_finite:
        problems.append(f"not finite: {some(found.not_finite)}")
    remedy = "set another backbone.name, backbone.small_images or image size, or another format"
    if set(found.shapes) == {"pos_embed"} and not found.missing:
        remedy = _position_remedy(found.shapes["pos_embed"].shape, backbone)
    elif not (found.missing or found.shapes or found.unknown):
        remedy = "its training had diverged; take an earlier checkpoint"
    matched = f"{len(found.used)} of the encoder's {len(own)} tensors match"
    return f"read as {found.format}, {matched}; {'; '.join(problems)}; {remedy}"


def _position_remedy(shape: tuple[int, ...], backbone: nn.Module) -> str:
    remedy = "position embeddings of another grid are not interpolated for an evaluation; set the "
    remedy += "image size of the pretraining"
    patches = shape[1] - getattr(backbone, "num_prefix_tokens", 0) if len(shape) == 3 else 0
    side, patch = math.isqrt(max(patches, 0)), getattr(backbone, "patch_embed", None)
    if side and side * side == patches and hasattr(patch, "patch_size"):
        remedy += f": image_size={side * patch.patch_size[0]}"
    return remedy


def _check_beyond(path: Path, found: Fit, backbone: nn.Module) -> int | None:
    """Hold against the encoder what a format is known for and no weight shows; heads of a ViT.

    Raises: UserError if the encoder would compute something else from the same weights.
    """
    format = FORMATS[found.format]
    stem, end = getattr(backbone, "conv1", None), getattr(backbone, "act1", None)
    if isinstance(stem, nn.Conv2d) and stem.kernel_size == (3, 3):
        pads = (format.stem_padding, format.stem_padding)
        if stem.padding != pads:
            raise UserError(
                f"'{path}': {found.format} pads a 3x3 stem by {pads[0]}, this encoder by "
                f"{stem.padding[0]}, so its features would differ; "
                f"set backbone.stem_padding={pads[0]}"
            )
    if end is not None and isinstance(end, nn.Identity) == format.stem_relu:
        has, wanted = ("a ReLU", "true") if format.stem_relu else ("no ReLU", "false")
        raise UserError(
            f"'{path}': {found.format} has {has} after the stem, unlike this encoder, so its "
            f"features would differ; set backbone.stem_relu={wanted}"
        )
    heads = _heads(backbone)
    right = dict(format.heads).get(getattr(backbone, "embed_dim", None), heads)
    if heads != right:
        raise UserError(
            f"'{path}': {found.format} has {right} attention heads at this width, this encoder "
            f"{heads}; set backbone.options={{num_heads: {right}}}"
        )
    return heads


def _heads(backbone: nn.Module) -> int | None:
    """Attention heads of a plain ViT."""
    blocks = getattr(backbone, "blocks", None)
    attention = getattr(blocks[0], "attn", None) if isinstance(blocks, nn.Sequential) else None
    return getattr(attention, "num_heads", None)
