"""Decoded images: small ones as one uint8 tensor on the device, others decoded when asked for."""

import copy
import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tacit.data.readers import Part, Source
from tacit.data.sources import DataConfig
from tacit.errors import UserError

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision means to drop it after 0.29; Pillow then decodes everything
    decode_jpeg = None

JPEG = b"\xff\xd8"  # how its files begin
SMALL = 96  # pixels: images whose sides are all at most this are kept decoded
CENTER = 0.875  # of the shorter side: what evaluation sees of a photograph, as 224 of 256 pixels


def decode(source: Source, i: int) -> np.ndarray:
    """Image i as uint8 (H, W, 3): upright as EXIF says, any colour mode converted to RGB.

    Raises: UserError that names the image if it cannot be read or decoded.
    """
    try:
        data = source.read(i)
        if isinstance(data, np.ndarray):
            return data
        if decode_jpeg and data.startswith(JPEG):
            pixels = _decode_jpeg(data)
            if pixels is not None:
                return pixels
        with Image.open(io.BytesIO(data)) as image:
            return np.array(to_rgb(image))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"Cannot decode {source.name(i)}: {error}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"Refused {source.name(i)}: {error}") from None


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """By torchvision: the same pixels as Pillow in a third of the time; None if it fails."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        return None  # Pillow decides whether it is broken, and says why
    return pixels.permute(1, 2, 0).numpy()


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB; transparency becomes white, 16-bit gray is scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class Images:
    """A source made ready for batches.

    Attributes:
        tensor: (N, 3, H, W) uint8 on the device, or None if the images are decoded when asked for.
        labels: (N,) int64 on the device, or None.
        classes: names, or None.
    """

    def __init__(self, source: Source, config: DataConfig, device: torch.device) -> None:
        self.source, self.classes, self.device = source, source.classes, device
        self.pool = ThreadPoolExecutor(config.workers or os.cpu_count() or 1, "decode")
        self.labels = None
        if source.classes is not None:
            self.labels = torch.tensor([source.label(i) for i in range(len(source))]).to(device)
        tensor = self._decode_all(config.in_memory)
        self.tensor = None if tensor is None else tensor.to(device)

    def __len__(self) -> int:
        return len(self.source)

    def part(self, rows: np.ndarray) -> "Images":
        """Some of the images, in this order; what is decoded stays decoded."""
        some = copy.copy(self)
        some.source = Part(self.source, rows)
        at = torch.from_numpy(rows).to(self.device)
        some.labels = None if self.labels is None else self.labels[at]
        some.tensor = None if self.tensor is None else self.tensor[at]
        return some

    def _decode_all(self, wanted: bool | None) -> Tensor | None:
        """All images as one (N, 3, H, W) tensor, or None where they are large or differ in size."""
        if wanted is False:
            return None
        first = decode(self.source, 0)
        if wanted is None and max(first.shape[:2]) > SMALL:
            return None
        out = np.empty((len(self.source), *first.shape), np.uint8)
        for i in range(len(out)):  # one thread: with images so small, two wait for each other
            image = decode(self.source, i)
            if image.shape != first.shape:
                if wanted is None:
                    return None
                odd, size = (f"{s[1]}x{s[0]}" for s in (image.shape, first.shape))
                raise UserError(
                    f"data.in_memory=true: {self.source.name(i)} is {odd} pixels, the first image "
                    f"{size}; all must be equal"
                )
            out[i] = image
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def cut(image: np.ndarray, box: list[int], size: int, flip: bool = False) -> Tensor:
    """One crop of a decoded image, resized with antialiasing: (3, size, size) uint8.

    Args:
        image: (H, W, 3) uint8.
        box: top, left, height, width in pixels.
    """
    top, left, height, width = box
    pixels = torch.from_numpy(image[top : top + height, left : left + width])
    pixels = pixels.permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        pixels, (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0]
    return resized.flip(2) if flip else resized


def evaluation_box(height: int, width: int) -> list[int]:
    """What evaluation sees of an image: the central square, of a photograph 0.875 of its side."""
    return center_box(height, width, 1.0 if max(height, width) <= SMALL else CENTER)


def center_box(height: int, width: int, fraction: float) -> list[int]:
    """The centred square whose side is the given fraction of the shorter side."""
    side = max(1, round(min(height, width) * fraction))
    return [(height - side) // 2, (width - side) // 2, side, side]
