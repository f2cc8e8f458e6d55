"""A pretrained encoder to use: features of images, prepared as an evaluation prepares them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from selfsight.batch import sides
from selfsight.data.decode import decode_bytes, picture
from selfsight.data.images import SMALL, cut
from selfsight.data.source import BadImage, Decoding
from selfsight.data.values import Values, shown
from selfsight.encoders.artifact import encoder_file, read_network
from selfsight.encoders.dense import LAST, Layers, chosen_layers, layer_maps
from selfsight.encoders.shown import shown_box
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
        """(B, C, h, w) float, already resized and normalised -> (B, D)."""
        return self.backbone(x)

    @torch.no_grad()
    def embed(self, images: Picture | Iterable[Picture], batch_size: int = 32) -> Tensor:
        """Features (B, D) of images of any size, in their order.

        They are decoded, cropped and resized as an evaluation does it, `batch_size` at a time: no
        more than one batch is in memory, so `images` may be a generator of many.
        Args:
            images: one or several of: path, PIL image, uint8 array (H, W), (H, W, 1) or (H, W, C),
                C the channels of the encoder's images; or one array (N, H, W, C). For an encoder of
                images with data.bits=16 uint16.
        Returns: float32 on the CPU, wherever the encoder is.
        Raises: UserError for a file that is not readable as an image, or for something else.
        Example: `load_encoder("runs/digits-simclr").embed(["cat.jpg", "dog.png"])`
        """
        pictures, found = _each(images), [torch.empty(0, self.num_features)]
        while (features := self._of_next(pictures, batch_size, self.backbone)) is not None:
            found.append(features.float().cpu())
        return torch.cat(found)

    @torch.no_grad()
    def dense(
        self,
        images: Picture | Iterable[Picture],
        layers: Layers = LAST,
        norm: bool = True,
        batch_size: int = 32,
    ) -> list[Tensor]:
        """Maps of the encoder's layers: for each layer (B, C, h, w), a vector for each place.

        Args:
            images: as of `embed`.
            layers: one or several of: the number of a layer (blocks of a transformer, stages of a
                convolutional network), from 0 or negative from the end; its name; "last".
            norm: of a transformer, pass each map through its last layer norm.
        Returns: float32 on the CPU, in the order of `layers`.
        Raises: UserError for an encoder without such layers; else as `embed`.

        >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
        >>> maps = load_encoder(run).dense(np.zeros((8, 8), np.uint8), layers=["layer2", -1])
        >>> [tuple(each.shape) for each in maps]
        [(1, 32, 4, 4), (1, 128, 1, 1)]
        """
        numbers = chosen_layers(self.backbone, layers)

        def work(x: Tensor) -> list[Tensor]:
            return layer_maps(self.backbone, x, numbers, norm)

        pictures, found = _each(images), []
        while (maps := self._of_next(pictures, batch_size, work)) is not None:
            found.append([each.float().cpu() for each in maps])
        if not found:
            size, channels = self.description["image_size"], self.description.get("channels", 3)
            blank = torch.zeros(1, channels, *sides(size), device=self._device)
            found.append([each[:0].float().cpu() for each in work(blank)])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters(), torch.empty(0)).device

    def _of_next(
        self, pictures: Iterator[Any], count: int, work: Callable[[Tensor], Any]
    ) -> Any | None:
        """What `work` makes of the next images, prepared; None after the last. Nothing else of the
        batch outlives the call."""
        if count < 1:
            raise UserError(f"batch_size={count}: must be 1 or more")
        views = [
            _evaluation_view(self._pixels(image), self.description)
            for image in islice(pictures, count)
        ]
        if not views:
            return None
        mean, std = (self.description[key] for key in ("mean", "std"))
        return work(augment.normalize(torch.cat(views).to(self._device), mean, std))

    def _pixels(self, image: Picture) -> np.ndarray:
        """(H, W, C) uint8 or uint16, as the images of the pretraining were decoded."""
        data = self.description.get("data", {})
        found = data.get("range") and tuple(data["range"])
        channels, bits = self.description.get("channels", 3), data.get("bits", 8)
        how = Decoding(found, channels=channels, bits=bits)
        try:
            if isinstance(image, np.ndarray):
                return _of_array(image, how)
            if isinstance(image, Image.Image):
                return picture(image, how)
        except ValueError as error:
            raise UserError(f"embed: an image {error}") from None
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


def _each(images: Picture | Iterable[Picture]) -> Iterator[Any]:
    """The images one by one; an array (N, H, W, C) is N of them."""
    one = isinstance(images, Picture) and getattr(images, "ndim", 0) != 4
    return iter([images] if one else images)  # type: ignore[arg-type]


def load_encoder(where: str | Path) -> Encoder:
    """The encoder of a finished run's folder or of an encoder.safetensors.

    Raises: UserError if the run is not finished or names or shapes of the weights do not fit.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> load_encoder(run).embed(torch.zeros(8, 8, dtype=torch.uint8).numpy()).shape
    torch.Size([1, 128])
    """
    network = read_network(encoder_file(where))
    return Encoder(network.build(), network.description)


def _of_array(image: np.ndarray, how: Decoding) -> np.ndarray:
    """The values of more than 8 bits need the range of the pretraining."""
    pixels = image[..., None] if image.ndim == 2 else image
    deep = how.bits == 16 or how.range is not None
    kinds = ("iuf" if how.range else "iu") if deep else ""
    usual = (1, 3) if how.channels == 3 else (how.channels,)
    right = pixels.dtype == np.uint8 or pixels.dtype.kind in kinds
    if not right or pixels.ndim != 3 or pixels.shape[2] not in usual:
        shapes = "(H, W), (H, W, 1)" + (f" or (H, W, {how.channels})" if how.channels > 1 else "")
        shapes = shapes if 1 in usual else f"(H, W, {how.channels})"
        raise UserError(
            f"embed: an array must be {'uint8 or uint16' if deep else 'uint8'} of shape {shapes}, "
            f"found {image.dtype} {image.shape}; give several images as a list"
        )
    return np.ascontiguousarray(shown([Values(pixels)], how))


def _evaluation_view(pixels: np.ndarray, description: dict[str, Any]) -> Tensor:
    """(1, C, h, w) float32 in [0, 1], as `evaluate.features.plain_views` makes it: large images are
    resized to integers, small ones (kept decoded) to floats."""
    size, resize = description["image_size"], description.get("resize", "crop")
    height, width, _ = pixels.shape
    box = shown_box(height, width, size, resize)
    if max(height, width) > SMALL:
        return augment.as_floats(cut(pixels, box, size)[None])
    pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of others
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return augment.resized_crop(image, torch.tensor([box]), size)
