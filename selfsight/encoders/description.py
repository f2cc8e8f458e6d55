"""What an encoder's file says of itself: made by `describe`, and read as what a stranger may have
written.

Nothing of it is built before its values are checked; and while a network is built, `Budget` keeps
it to the size of the weights that the file holds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfsight import __version__
from selfsight.batch import MOST_CHANNELS, ImageSize
from selfsight.config import Config, read_yaml, validate
from selfsight.data.config import DataConfig
from selfsight.encoders.backbones import BackboneConfig
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.files import Damaged, parse_json, read_text, unsealed
from selfsight.methods.heads import EncoderWithProjection
from selfsight.views.recipe import Size

FORMAT = 2
METADATA = ("selfsight", "tacit")  # its key in the file; the second until the package was renamed
LARGEST_OPTION = 2**16  # of a number among the options of a backbone
SPARE = 2**26  # numbers that building a network may need beyond four times its weights


class _Description(Config):
    """The keys that decide what is built and shown to it."""

    model_config = ConfigDict(extra="ignore")
    backbone: BackboneConfig
    head_dim: int | None = Field(None, ge=1)
    fixed_positions: bool = False
    num_features: int = Field(ge=1)
    image_size: Size
    resize: Resize = "crop"
    channels: int = Field(3, ge=1, le=MOST_CHANNELS)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int = Field(ge=0, lt=2**64)
    precision: str
    data: dict[str, Any]
    pretrained_on: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _one_a_channel(self) -> "_Description":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std must have {self.channels} numbers, one a channel")
        return self


def describe(
    backbone: nn.Module,
    config: BackboneConfig,
    method: dict[str, Any],
    data: DataConfig,
    image_size: ImageSize,
    seed: int,
    precision: str,
    pretrained_on: dict[str, Any],
    resize: Resize = "crop",
) -> dict[str, Any]:
    """The description of an encoder: only what two equal runs share.

    Args:
        backbone: the encoder as its method prepared it.
        method: its configuration, for the record.
        image_size: of the images that an evaluation shows it, in pixels.
        pretrained_on: images, epochs and the like.
        resize: how an evaluation brings images to this size.
    """
    positions = getattr(backbone, "pos_embed", None)
    kept_head = isinstance(backbone, EncoderWithProjection)
    inner = backbone.backbone if kept_head else backbone
    return {
        "format": FORMAT,
        "method": method,
        "backbone": config.model_dump(mode="json"),
        "head_dim": backbone.num_features if kept_head else None,
        "fixed_positions": isinstance(positions, Tensor) and not positions.requires_grad,
        "num_features": backbone.num_features,
        "backbone_features": inner.num_features,
        "image_size": image_size if isinstance(image_size, int) else list(image_size),
        "resize": resize,
        "channels": data.channels,
        "mean": list(data.mean),
        "std": list(data.std),
        "seed": seed,
        "precision": precision,
        "data": data.model_dump(mode="json", exclude={"workers", "patience"}),
        "pretrained_on": pretrained_on,
        METADATA[0]: __version__,
    }


def read_description(file: Path) -> dict[str, Any]:
    """The content of an encoder.json. Raises: UserError if it is damaged."""
    return parse_description(read_text(file), file)


def parse_description(text: str, file: Path) -> dict[str, Any]:
    """The description of an encoder, checked, in the form of format 2.

    Args:
        file: where the text was found.
    Raises: UserError if it is damaged, of a later format, or if a value cannot be.
    """
    described = unsealed(parse_json(text, file), file)
    found = described.get("format")
    if type(found) is int and found > FORMAT:
        raise UserError(
            f"'{file}': its description has format {found}, and this Selfsight reads formats up "
            f"to {FORMAT}; update it"
        )
    if found not in (1, FORMAT):
        raise Damaged(file, "the format of its description is not known")
    try:
        described = _upgraded(described, file.parent)
        checked = validate(_Description, described)
    except (UserError, KeyError, TypeError) as error:
        reason = "; ".join(str(error).splitlines())[:500]
        raise UserError(f"'{file}': its description is not valid: {reason}") from None
    for value in _leaves(checked.backbone.options):
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_OPTION:
            raise UserError(
                f"'{file}': its description is not valid: {value} among backbone.options is "
                f"beyond {LARGEST_OPTION:,}"
            )
    return {**described, **checked.model_dump(mode="json", exclude={"backbone", "data"})}


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _upgraded(description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A description of format 1, which left data and preparation to the run's config.yaml, as one
    of format 2."""
    if description["format"] > 1:
        return description
    method, file = description["method"]["name"], folder / "config.yaml"
    run = read_yaml(file) if file.is_file() else {}
    return {
        **description,
        "fixed_positions": method in ("mae", "ijepa", "moco_v3"),  # of encoders that have them
        "precision": run.get("precision", "auto"),
        "data": {
            **run.get("data", {}),
            "mean": description["mean"],
            "std": description["std"],
        },
    }


class Budget(TorchDispatchMode):
    """Building a network within the size of given weights.

    Args:
        tensors, numbers: how many weights there are, and how many numbers they have together.
        where: what an error message calls them.
    Raises: UserError, before memory is allocated, for a network that is much larger.
    """

    def __init__(self, tensors: int, numbers: int, where: str) -> None:
        super().__init__()
        self._calls, self._numbers = 10 * tensors + 5_000, 4 * numbers + SPARE
        self._where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        shapes = [x.shape for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not shapes:
            self._pay(max((_size(argument) for argument in args), default=0))
        elif len(shapes) > 1:
            self._pay_for_broadcast(shapes)
        return func(*args, **kwargs)

    def _pay_for_broadcast(self, shapes: list[torch.Size]) -> None:
        try:
            size = torch.broadcast_shapes(*shapes).numel()
        except RuntimeError:  # an operation that does not broadcast
            return
        if size > self._numbers:
            self._pay(size)

    def _pay(self, numbers: int) -> None:
        self._calls, self._numbers = self._calls - 1, self._numbers - numbers
        if self._calls < 0 or self._numbers < 0:
            raise UserError(
                f"'{self._where}': its description says a network that is much larger than its "
                f"weights; the file is damaged, or made to do harm"
            )


def _size(argument: Any) -> int:
    """How many numbers a tensor may have that is made from this argument: a shape or a length."""
    if isinstance(argument, (list, tuple)) and all(type(n) is int for n in argument):
        return torch.Size(argument).numel() if all(n >= 0 for n in argument) else 0
    return argument if type(argument) is int else 0
