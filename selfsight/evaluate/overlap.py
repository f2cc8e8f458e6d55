"""Images that two splits share: by path, by content, and, as a hint only, by perceptual hash."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.data.decode import decoded, read
from selfsight.data.images import Images, cut
from selfsight.data.packed_strings import load_index, save_index
from selfsight.data.source import BadImage, content_hash, decoding, made_from, stamp

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, as in JPEG and Pillow
FORMAT = 1  # of the cache; raise it with any change of what a fingerprint is
SIDE = 8  # of the thumbnail that the difference hash compares


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a split.

    Attributes:
        paths: the path of each image, or its name if it has none.
        contents: (N, 16) uint8, a hash of each image's bytes or pixels.
        origins: (N, 16) uint8, the same for images of a pack: of the files they were made from.
        dhash: (N,) uint64, the difference hash; 0 for an image of one colour.
    """

    paths: list[str]
    contents: np.ndarray
    origins: np.ndarray
    dhash: np.ndarray

    @property
    def digest(self) -> str:
        """A hash of all contents in order, which identifies the split in any folder."""
        return hashlib.sha256(self.contents.tobytes()).hexdigest()


@dataclass(frozen=True)
class Overlap:
    """The number of test images that are also in the training split.

    Attributes:
        paths: by path; contents: byte for byte or pixel for pixel, also before a pack was made.
        similar: with an equal 64-bit difference hash; for small images many of these are chance.
        example: the path of one shared image, or None.
    """

    paths: int
    contents: int
    similar: int
    example: str | None


class _Hashes(NamedTuple):
    """What the cache keeps: (N, 16) and (N,), see `Fingerprints`."""

    contents: np.ndarray
    dhash: np.ndarray


def fingerprints(images: Images, cache: Path | None = None) -> Fingerprints:
    """The fingerprints of all images: each is read, and decoded where it was not kept.

    Args:
        cache: folder that remembers them for as long as the files have their sizes and times;
            then only images that could not be used are read again: a disk may have failed.
    Raises: as Images.mark_bad, for a broken image; the fingerprint of one that is allowed is 0.
    """
    source, known = images.source, cache and stamp(images.source)
    hashes, file = None, None
    if known:
        what = f"{FORMAT} {images.in_memory} {known}{decoding(source).mark()}"
        key = hashlib.sha256(what.encode()).hexdigest()
        file = cache / f"fingerprints-{key[:16]}.npz"
        hashes = load_index(file, _Hashes)
        if hashes and (
            hashes.contents.shape != (len(source), 16) or hashes.dhash.shape != (len(source),)
        ):
            hashes = None
    if hashes is None:
        hashes = _read_all(images)
        if file:
            save_index(file, hashes)
    else:
        for i in np.flatnonzero(~hashes.contents.any(1)).tolist():
            content, hashes.dhash[i] = _fingerprint(images, i)
            hashes.contents[i] = np.frombuffer(content, np.uint8)
    names = [source.name(i) for i in range(len(source))]
    paths = [os.path.realpath(name) if os.sep in name else name for name in names]
    return Fingerprints(paths, hashes.contents, made_from(source, hashes.contents), hashes.dhash)


def _read_all(images: Images) -> _Hashes:
    source = images.source
    if images.tensor is None:
        pairs = list(images.pool.map(lambda i: _fingerprint(images, i), range(len(source))))
        dhash = np.array([look for _, look in pairs], np.uint64)
        hashes = [content for content, _ in pairs]
    else:
        broken = images.broken()
        rows = range(len(source))
        hashes = [bytes(16) if i in broken else content_hash(read(source, i)) for i in rows]
        dhash = np.concatenate([_dhash(part) for part in images.tensor.split(4096)])
    return _Hashes(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16), dhash)


def compare(train: Fingerprints, test: Fingerprints) -> Overlap:
    """The overlap of the test split with the training split."""
    paths = _shared(train.paths, test.paths)
    contents = _shared(*([row.tobytes() for row in p.contents] for p in (train, test)))
    contents |= _shared(*([row.tobytes() for row in p.origins] for p in (train, test)))
    similar = np.isin(test.dhash, train.dhash) & (test.dhash != 0)
    same = np.flatnonzero(paths | contents)
    example = test.paths[same[0]] if len(same) else None
    return Overlap(int(paths.sum()), int(contents.sum()), int(similar.sum()), example)


def _shared(train: list, test: list) -> np.ndarray:
    """(M,) bool: whether each test value is among the training values."""
    seen = set(train) - {bytes(16)}  # the fingerprint of broken images
    return np.array([value in seen for value in test])


def _fingerprint(images: Images, i: int) -> tuple[bytes, int]:
    """Content hash and difference hash of one image."""
    try:
        data = read(images.source, i, images.patience)
        pixels = decoded(images.source, i, data, images.patience)
    except BadImage as error:
        images.mark_bad(i, error)
        return bytes(16), 0
    small = cut(pixels, [0, 0, *pixels.shape[:2]], 8 * SIDE)
    return content_hash(data), int(_dhash(small[None])[0])


def _dhash(images: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B,) uint64: per cell of an 8 x 8 grid: brighter than its right neighbour?"""
    gray = images.float()
    if images.shape[1] == 3:
        gray *= torch.tensor(LUMA, device=images.device)[:, None, None]
    gray = gray.sum(1, keepdim=True)
    small = F.adaptive_avg_pool2d(gray, (SIDE, SIDE + 1))[:, 0]
    brighter = (small[:, :, :-1] > small[:, :, 1:]).flatten(1).cpu().numpy()
    return np.packbits(brighter, axis=1).view(">u8")[:, 0].astype(np.uint64)
