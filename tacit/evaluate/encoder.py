"""The pretrained encoder as a file: weights, and a description to build it again, strictly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tacit import augment
from tacit.backbones import BackboneConfig, build_backbone
from tacit.config import validate
from tacit.data.images import cut, evaluation_box, to_rgb
from tacit.errors import UserError
from tacit.methods.heads import WithHead
from tacit.train.files import write_atomically, write_json

FILE = "encoder.safetensors"


class Encoder(nn.Module):
    """A frozen pretrained encoder, in eval mode.

    Attributes:
        backbone: the timm model.
        description: how it was made and what input it expects.
        num_features: width D of its features.
    """

    def __init__(self, backbone: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.description = backbone, description
        self.num_features: int = backbone.num_features
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, s, s) float, already resized and normalised -> (B, D)."""
        return self.backbone(x)

    @torch.no_grad()
    def embed(self, images: list[str | Path | Image.Image]) -> Tensor:
        """Features (B, D) of image files or PIL images of any size, prepared as in evaluation."""
        size, mean, std = (self.description[key] for key in ("image_size", "mean", "std"))
        crops = []
        for image in images:
            if isinstance(image, Image.Image):
                pixels = np.array(to_rgb(image))
            else:
                with Image.open(image) as opened:
                    pixels = np.array(to_rgb(opened))
            crops.append(cut(pixels, evaluation_box(*pixels.shape[:2]), size))
        x = torch.stack(crops).float().div_(255)
        device = next(self.backbone.parameters()).device
        return self.backbone(augment.normalize(x.to(device), mean, std))


def save_encoder(folder: Path, backbone: nn.Module, description: dict[str, Any]) -> Path:
    """Write encoder.safetensors, its description inside, and the same as encoder.json."""
    path = folder / FILE
    tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    # One metadata key: safetensors does not keep the order of several, and equal runs must give
    # equal bytes.
    metadata = {"tacit": json.dumps(description, sort_keys=True)}
    write_json(folder / "encoder.json", description)
    write_atomically(path, lambda p: save_file(tensors, p, metadata))
    return path


def load_encoder(where: str | Path) -> Encoder:
    """The encoder of a finished run's folder or of an encoder.safetensors.

    Raises: UserError if the run is not finished or names or shapes of the weights do not fit.
    """
    path = Path(where)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(
                f"'{path}' holds no {FILE}: the run is not finished; "
                f"the `tacit pretrain` command that began it goes on"
            )
        path = path / FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}': not a readable encoder: {error}") from None
    if "tacit" not in metadata:
        raise UserError(f"'{path}': was not written by Tacit (no description in it)")
    description = json.loads(metadata["tacit"])
    config = validate(BackboneConfig, description["backbone"])
    backbone = build_backbone(config, description["image_size"], seed=0)
    if description.get("head_dim"):
        backbone = WithHead(backbone, description["head_dim"])
    try:
        backbone.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"'{path}': weights do not fit {config.name}: {error}") from None
    return Encoder(backbone, description)
