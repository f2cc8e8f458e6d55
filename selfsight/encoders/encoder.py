"""A pretrained encoder to use: features of images, prepared as an evaluation prepares them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from selfsight.data.decode import decode_bytes, picture
from selfsight.data.images import SMALL, cut, evaluation_box
from selfsight.data.source import BadImage, Decoding
from selfsight.encoders.artifact import encoder_file, read_network
from selfsight.errors import UserError
from selfsight.views.ops import augment

Picture = str | Path | Image.Image | np.ndarray


class Encoder(nn.Module):
    """A frozen pretrained encoder, in eval mode.

    Attributes:
        backbone: the timm model.
        description: how it was made and what input it expects.
        num_features: width D of its features.
    """

    description: dict[str, Any]

    def __init__(self, backbone: Any, description: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.description = backbone, description
        self.num_features: int = backbone.num_features
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, s, s) float, already resized and normalised -> (B, D)."""
        return self.backbone(x)

    @torch.no_grad()
    def embed(self, images: Picture | Iterable[Picture], batch_size: int = 32) -> Tensor:
        """Features (B, D) of images of any size, in their order.

        They are decoded, cropped and resized as an evaluation does it, `batch_size` at a time, so a
        generator of many images needs little memory.
        Args:
            images: one or several of: path, PIL image, uint8 array (H, W), (H, W, 1) or (H, W, 3);
                or one array (N, H, W, 3).
        Raises: UserError for a file that is not readable as an image, or for something else.
        Example: `load_encoder("runs/digits-simclr").embed(["cat.jpg", "dog.png"])`
        """
        if isinstance(images, Picture) and getattr(images, "ndim", 0) != 4:
            images = [images]
        first = next(self.backbone.parameters(), torch.empty(0))
        size, mean, std = (self.description[key] for key in ("image_size", "mean", "std"))
        found = [torch.empty(0, self.num_features, device=first.device)]
        pictures: Iterator[Any] = iter(images)  # type: ignore[arg-type]  # an array gives images
        while batch := list(islice(pictures, batch_size)):
            views = [_evaluation_view(self._pixels(image), size) for image in batch]
            x = augment.normalize(torch.cat(views).to(first.device), mean, std)
            found.append(self.backbone(x).float())
        return torch.cat(found)

    def _pixels(self, image: Picture) -> np.ndarray:
        """(H, W, 3) uint8."""
        data = self.description.get("data", {})
        how = Decoding(
            data.get("range") and tuple(data["range"]),
            channels=data.get("channels", 3),
            bits=data.get("bits", 8),
        )
        if isinstance(image, Image.Image):
            return picture(image, how)
        if isinstance(image, np.ndarray):
            return _as_rgb(image)
        if not isinstance(image, (str, Path)):
            raise UserError(
                f"embed: takes paths, PIL images and uint8 arrays, found {type(image).__name__}; "
                f"give a list of them, or one"
            )
        try:
            content = Path(image).read_bytes()
        except OSError as error:
            raise BadImage(str(image), error.strerror or str(error)) from None
        return decode_bytes(content, str(image), how)


def load_encoder(where: str | Path) -> Encoder:
    """The encoder of a finished run's folder or of an encoder.safetensors.

    Raises: UserError if the run is not finished or names or shapes of the weights do not fit.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> load_encoder(run).embed(torch.zeros(8, 8, dtype=torch.uint8).numpy()).shape
    torch.Size([1, 128])
    """
    network = read_network(encoder_file(where))
    return Encoder(network.build(), network.description)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise UserError(
            f"embed: an array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), found "
            f"{image.dtype} {image.shape}; give several images as a list"
        )
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def _evaluation_view(pixels: np.ndarray, size: int) -> Tensor:
    """(1, 3, size, size) float32 in [0, 1], as `evaluate.features.plain_views` makes it: large
    images are resized to bytes, small ones (kept decoded) to floats."""
    box = evaluation_box(*pixels.shape[:2])
    if max(pixels.shape[:2]) > SMALL:
        return cut(pixels, box, size)[None].float().div_(255)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return augment.resized_crop(image, torch.tensor([box]), size)
