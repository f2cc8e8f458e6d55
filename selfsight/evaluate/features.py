"""Features of a frozen encoder: eval mode, no gradient, and proof that nothing in it moved."""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from selfsight import agreement, distributed
from selfsight.batch import ImageSize, Normalization, sides
from selfsight.data.crops import CropDecoder
from selfsight.data.images import Images
from selfsight.encoders.artifact import weights_hash
from selfsight.encoders.shown import Resize, shown_box
from selfsight.errors import UserError
from selfsight.files import write_atomically
from selfsight.views.ops import augment

Features = Tensor | np.ndarray
Pieces = Iterator[tuple[int, Tensor]]  # the place of a batch's first row, and its features

BATCH = 500  # images at most
PIXELS = 2**16  # of a batch on a CPU, whose cache then holds what a layer makes of it
LEAST = 16  # images of such a batch
SIZE = 16.0  # root mean square of float16 features, within a factor of two; they reach to 65504


def as_tensor(x: Features) -> Tensor:
    """A tensor over the same memory, or memory map; it must not be written to."""
    if isinstance(x, Tensor):
        return x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of float32 in full float32, also on a GPU that was set to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def plain_views(
    images: Images, size: ImageSize, rows: np.ndarray | None = None, resize: Resize = "crop"
) -> Iterator[Tensor]:
    """Images as evaluation sees them, in order: (b, C, h, w) float32 in [0, 1].

    Args:
        size: h and w in pixels, or the side of a square.
        resize: crop: the central part of that shape, of photographs 0.875 of it; squash: all of it.
    """
    rows = np.arange(len(images)) if rows is None else rows
    step = batch_size(images.device, size)
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    if images.tensor is None:
        yield from _decoded_views(images, size, parts, resize)
        return
    shown = shown_box(*images.tensor.shape[-2:], size, resize)
    box = torch.tensor([shown], device=images.device)
    for part in parts:
        pixels = images.tensor[torch.from_numpy(part).to(images.device)]
        yield augment.resized_crop(pixels, box.expand(len(part), 4), size)


def batch_size(device: torch.device, size: ImageSize) -> int:
    """Images of a batch of `plain_views`: few on a CPU, whose cache then holds what one layer
    hands to the next."""
    few = min(BATCH, max(LEAST, PIXELS // math.prod(sides(size))))
    return BATCH if device.type != "cpu" else few


def _decoded_views(
    images: Images, size: ImageSize, parts: list[np.ndarray], resize: Resize
) -> Iterator[Tensor]:
    """While one batch is used, the threads decode the next."""

    def boxes(_: Tensor, height: Tensor, width: Tensor) -> list[Tensor]:
        pairs = zip(height.tolist(), width.tolist(), strict=True)
        return [torch.tensor([shown_box(h, w, size, resize) for h, w in pairs])]

    cutter = CropDecoder(images, [sides(size)])
    ahead = cutter.submit(parts[0], boxes) if parts else None
    for n in range(len(parts)):
        now, ahead = ahead, cutter.submit(parts[n + 1], boxes) if n + 1 < len(parts) else None
        now.wait()
        pixels = now.views[0].to(images.device, non_blocking=True).permute(0, 3, 1, 2)
        yield augment.as_floats(pixels)
        cutter.take_back(now)


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Images,
    size: ImageSize,
    normalization: Normalization,
    rows: np.ndarray | None = None,
    amp: bool = False,
    file: Path | None = None,
    shared: bool = False,
    scale: float = 1.0,
    resize: Resize = "crop",
) -> Tensor:
    """Features of the images (or of those rows), each image seen once, in order: (N, D).

    Args:
        size, resize: what the encoder sees of an image, see `plain_views`.
        file: write them there, batch by batch, as float16 .npy, and return a map of it, which may
            be larger than memory. They are multiplied by `scale` so that none overflows. The file
            appears when it is complete and the encoder is proven frozen, else not at all.
        scale: of a file, from `scale_of`; metrics do not depend on it as long as all
            splits have the same.
        shared: all ranks call this and share the images; each gets all features. Of a file, rank 0
            writes it and all map it: it must be where every rank can read.
    Returns: float32 on the images' device; with a file float16 on the CPU, not to be written to.
    Raises: UserError if the encoder changed meanwhile, which would make the numbers worthless, if a
        feature is not finite, or if the file cannot be written.
    """
    rows = np.arange(len(images)) if rows is None else rows
    ranks, rank = (distributed.world_size(), distributed.rank()) if shared else (1, 0)
    cuts = [len(rows) * r // ranks for r in range(ranks + 1)]
    mine = rows[cuts[rank] : cuts[rank + 1]]
    views = plain_views(images, size, mine, resize)
    batches = feature_batches(encoder, views, normalization, amp)
    pieces = _gathered(batches, cuts, batch_size(images.device, size), images.device)
    pieces = finite(pieces, rows)
    if file is None:
        return _in_memory(pieces, len(rows))
    if rank > 0:
        for _ in pieces:  # takes part in what rank 0 writes
            pass
    else:
        _in_file(pieces, len(rows), file, scale)
    if shared:
        agreement.barrier()
    return read_features(file)


def read_features(file: Path) -> Tensor:
    """The features that `extract` wrote: (N, D) float16, read from the file when used."""
    return as_tensor(np.load(file, mmap_mode="r"))


@torch.no_grad()
def feature_batches(
    encoder: nn.Module,
    views: Iterator[Tensor],
    normalization: Normalization,
    amp: bool,
) -> Iterator[Tensor]:
    """(b, D) float32 features of each batch; after the last, proof that nothing moved.

    Args:
        views: as of `plain_views`.
        amp: whether the encoder runs in bf16.
    """
    before, was_training = weights_hash(encoder), encoder.training
    encoder.eval()
    try:
        for pixels in views:
            x = augment.normalize(pixels, *normalization).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
                features = encoder(x)
            yield features.float()
    finally:
        encoder.train(was_training)
    prove_frozen(encoder, before)


def prove_frozen(encoder: nn.Module, before: str) -> None:
    """Raises: UserError if `weights_hash` of the encoder is another than before."""
    if weights_hash(encoder) != before:
        raise UserError("The encoder changed while its features were read; it is not frozen")


def _gathered(
    batches: Iterator[Tensor], cuts: list[int], step: int, device: torch.device
) -> Pieces:
    """(place of its first row, features) of every batch of every rank, on every rank.

    Args:
        batches: this rank's, of `step` rows but the last.
        cuts: rank r has the rows from cuts[r] to cuts[r + 1].
    """
    ranks = len(cuts) - 1
    width = None
    for start in range(0, max(np.diff(cuts)), step):
        mine = next(batches, None)  # none where this rank's share is at its end
        if ranks == 1:
            yield start, mine
            continue
        if width is None:
            width = int(distributed.maximum(0 if mine is None else mine.shape[1], device))
        padded = torch.zeros(step, width, device=device)
        if mine is not None:
            padded[: len(mine)] = mine
        parts = distributed.gather(padded).split(step)
        for part, first, end in zip(parts, cuts[:-1], cuts[1:], strict=True):
            if first + start < end:
                yield first + start, part[: end - first - start]
    for _ in batches:  # lets it come to its proof
        raise AssertionError("more batches than rows")


def finite(pieces: Pieces, rows: np.ndarray) -> Pieces:
    """The same pieces. Raises: UserError that names the image of features that are not finite.

    Args:
        rows: of each place the index of its image.
    """
    for place, part in pieces:
        good = part.isfinite().all(1)
        if not good.all():
            image = rows[place + int((~good).nonzero()[0])]
            raise UserError(f"Image {image}: its features are not finite; the encoder has diverged")
        yield place, part


def _in_memory(pieces: Pieces, count: int) -> Tensor:
    features = None
    for place, part in pieces:
        if features is None:
            features = part.new_empty(count, part.shape[1])
        features[place : place + len(part)] = part
    return features


def _in_file(pieces: Pieces, count: int, file: Path, scale: float) -> None:
    """Written, not mapped: a full disk is then an error, and nothing stays in memory."""
    first = next(pieces)
    width = first[1].shape[1]

    def write(path: Path) -> None:
        with path.open("wb") as out:
            header = {"descr": "<f2", "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(out, header)
            origin = out.tell()
            for place, part in itertools.chain([first], pieces):
                half = (part * scale).half()
                if not half.isfinite().all():
                    raise UserError(f"'{file}': features differ too much in size for float16")
                out.seek(origin + place * 2 * width)
                out.write(half.cpu().numpy().astype("<f2", copy=False).tobytes())

    try:
        write_atomically(file, write, 2 * count * width)
    except OSError as error:
        reason = f"'{file}': features cannot be written: {error.strerror}"
        raise UserError(f"{reason}; free space or choose another place") from None


def scale_of(
    encoder: nn.Module,
    images: Images,
    size: ImageSize,
    normalization: Normalization,
    amp: bool = False,
    resize: Resize = "crop",
) -> float:
    """What float16 features of this encoder are multiplied by, from its first images' features."""
    rows = np.arange(min(len(images), batch_size(images.device, size)))
    return _scale(extract(encoder, images, size, normalization, rows, amp, resize=resize))


def _scale(part: Tensor) -> float:
    """The power of two that brings the root mean square near SIZE."""
    rms = float(part.cpu().double().square().mean().sqrt())
    return 2.0 ** max(-99, min(99, round(math.log2(SIZE / rms)))) if rms else 1.0


def raw_pixels(images: Images, size: ImageSize, resize: Resize = "crop") -> Tensor:
    """The images themselves as features, (N, C * h * w), resized as for the encoder."""
    return torch.cat([pixels.flatten(1) for pixels in plain_views(images, size, resize=resize)])
