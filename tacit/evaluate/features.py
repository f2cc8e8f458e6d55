"""Features of a frozen encoder: eval mode, no gradient, and proof that nothing in it moved."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from tacit import augment
from tacit.data.images import Images, cut, decode, evaluation_box
from tacit.errors import UserError

BATCH = 500  # images


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)} ".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain_views(images: Images, size: int, rows: np.ndarray | None = None) -> Iterator[Tensor]:
    """Images as evaluation sees them, in order: (b, 3, size, size) float32 in [0, 1].

    The central square, resized; of photographs 0.875 of the shorter side.
    """
    rows = np.arange(len(images)) if rows is None else rows
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        if images.tensor is not None:
            pixels = images.tensor[torch.from_numpy(part).to(images.device)]
            box = torch.tensor([evaluation_box(*pixels.shape[-2:])], device=images.device)
            yield augment.resized_crop(pixels, box.expand(len(part), 4), size)
        else:
            crops = images.pool.map(lambda i: _center(images, int(i), size), part)
            yield torch.stack(list(crops)).to(images.device).float().div_(255)


def _center(images: Images, i: int, size: int) -> Tensor:
    image = decode(images.source, i)
    return cut(image, evaluation_box(*image.shape[:2]), size)


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Images,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    rows: np.ndarray | None = None,
    amp: bool = False,
) -> Tensor:
    """Features of the images (or of those rows): (N, D) float32 on the images' device.

    Raises: UserError if the encoder changed meanwhile, which would make the numbers worthless.
    """
    before = weights_hash(encoder)
    was_training = encoder.training
    encoder.eval()
    features = []
    for pixels in plain_views(images, size, rows):
        x = augment.normalize(pixels, mean, std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            features.append(encoder(x).float())
    encoder.train(was_training)
    if weights_hash(encoder) != before:
        raise UserError("The encoder changed while its features were read; it is not frozen")
    return torch.cat(features)


def raw_pixels(images: Images, size: int) -> Tensor:
    """The images themselves as features, (N, 3 * size * size), resized as for the encoder."""
    return torch.cat([pixels.flatten(1) for pixels in plain_views(images, size)])
