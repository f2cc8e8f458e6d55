"""A pretrained encoder to use: features of images, prepared as an evaluation prepares them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from selfsight.data.decode import decode_bytes, to_rgb
from selfsight.data.images import SMALL, cut, evaluation_box
from selfsight.data.source import BadImage
from selfsight.encoders.artifact import encoder_file, read_network
from selfsight.views.ops import augment


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
        """Features (B, D) of image files or PIL images of any size.

        They are decoded, cropped and resized as an evaluation does it.
        Raises: UserError for a file that is not readable as an image.
        """
        size, mean, std = (self.description[key] for key in ("image_size", "mean", "std"))
        x = torch.cat([_evaluation_view(_pixels(image), size) for image in images])
        device = next(self.backbone.parameters()).device
        return self.backbone(augment.normalize(x.to(device), mean, std))


def load_encoder(where: str | Path) -> Encoder:
    """The encoder of a finished run's folder or of an encoder.safetensors.

    Raises: UserError if the run is not finished or names or shapes of the weights do not fit.
    """
    network = read_network(encoder_file(where))
    return Encoder(network.build(), network.description)


def _pixels(image: str | Path | Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    if isinstance(image, Image.Image):
        return np.array(to_rgb(image))
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise BadImage(str(image), error.strerror or str(error)) from None
    return decode_bytes(data, str(image))


def _evaluation_view(pixels: np.ndarray, size: int) -> Tensor:
    """(1, 3, size, size) float32 in [0, 1], as `evaluate.features.plain_views` makes it: large
    images are resized to bytes, small ones (kept decoded) to floats."""
    box = evaluation_box(*pixels.shape[:2])
    if max(pixels.shape[:2]) > SMALL:
        return cut(pixels, box, size)[None].float().div_(255)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return augment.resized_crop(image, torch.tensor([box]), size)
