"""Do two splits share images? By path, by content, and, as a hint only, by looks."""

import hashlib
import io
import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tacit.data.images import Images, to_rgb

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, as in JPEG and Pillow
SIDE = 8  # of the thumbnail that the difference hash compares


@dataclass(frozen=True)
class Prints:
    """The finger prints of a split.

    Attributes:
        paths: where each image is from.
        contents: (N, 16) uint8, a hash of each image's bytes or pixels.
        looks: (N,) uint64, the difference hash; 0 for an image without any structure.
    """

    paths: list[str]
    contents: np.ndarray
    looks: np.ndarray

    @property
    def digest(self) -> str:
        """Of all contents in their order: names this split, wherever it lies."""
        return hashlib.sha256(self.contents.tobytes()).hexdigest()


@dataclass(frozen=True)
class Overlap:
    """How many test images the training split has, too.

    Attributes:
        paths: by path; contents: byte for byte or pixel for pixel.
        similar: that look alike, by a 64-bit hash; many of these are chance where images are small.
        example: one that is shared by path or content, or None.
    """

    paths: int
    contents: int
    similar: int
    example: str | None


def prints(images: Images) -> Prints:
    """Of all images: each is read once more, and decoded once more where it was not kept."""
    source = images.source
    if images.tensor is None:
        pairs = list(images.pool.map(lambda i: _prints(source.read(i)), range(len(source))))
        looks = np.array([look for _, look in pairs], np.uint64)
        hashes = [content for content, _ in pairs]
    else:
        hashes = [_content(source.read(i)) for i in range(len(source))]
        luma = torch.tensor(LUMA, device=images.device)[:, None, None]
        parts = images.tensor.split(4096)
        looks = np.concatenate([_looks((part * luma).sum(1)) for part in parts])
    contents = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16)
    names = [source.name(i) for i in range(len(source))]
    paths = [os.path.realpath(name) if os.sep in name else name for name in names]
    return Prints(paths, contents, looks)


def compare(train: Prints, test: Prints) -> Overlap:
    """What of the test split is in the training split."""
    paths = _shared(train.paths, test.paths)
    contents = _shared(*([row.tobytes() for row in p.contents] for p in (train, test)))
    similar = np.isin(test.looks, train.looks) & (test.looks != 0)
    same = np.flatnonzero(paths | contents)
    example = test.paths[same[0]] if len(same) else None
    return Overlap(int(paths.sum()), int(contents.sum()), int(similar.sum()), example)


def _shared(train: list, test: list) -> np.ndarray:
    """(M,) bool, which of the test values are among the training values."""
    seen = set(train)
    return np.array([value in seen for value in test])


def _content(data: bytes | np.ndarray) -> bytes:
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=16).digest()
    pixels = hashlib.blake2b(np.ascontiguousarray(data), digest_size=16)
    pixels.update(str(data.shape).encode())
    return pixels.digest()


def _prints(data: bytes | np.ndarray) -> tuple[bytes, int]:
    """Hash of content and hash of looks of one image, of which only a thumbnail is decoded."""
    try:
        with (
            Image.open(io.BytesIO(data))
            if isinstance(data, bytes)
            else Image.fromarray(data) as image
        ):
            image.draft("L", (8 * SIDE, 8 * SIDE))  # JPEG: decoded at a part of its size
            gray = to_rgb(image).convert("L")
            small = gray.resize((8 * SIDE, 8 * SIDE), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _content(data), 0  # whoever needs the image will say what is wrong with it
    return _content(data), int(_looks(torch.from_numpy(np.array(small)).float()[None])[0])


def _looks(gray: Tensor) -> np.ndarray:
    """(B, H, W) -> (B,) uint64: of 8 x 8 places, which are brighter than their right one."""
    small = F.adaptive_avg_pool2d(gray[:, None], (SIDE, SIDE + 1))[:, 0]
    brighter = (small[:, :, :-1] > small[:, :, 1:]).flatten(1).cpu().numpy()
    return np.packbits(brighter, axis=1).view(">u8")[:, 0].astype(np.uint64)
