"""The accuracy of a classifier: over all ranks, each image exactly once."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from selfsight import distributed
from selfsight.batch import ImageSize, Normalization
from selfsight.data.images import Images
from selfsight.encoders.shown import Resize
from selfsight.evaluate.classifiers import Classifier
from selfsight.evaluate.features import plain_views
from selfsight.views.ops import augment


@dataclass(frozen=True)
class Right:
    """One head's accuracy: fractions of images whose class has the highest score, or one of the
    five highest; and for each image (M,) bool whether top1 counts it."""

    top1: float
    top5: float
    images: Tensor = field(compare=False, repr=False)


@torch.no_grad()
def accuracy(
    method: Classifier,
    images: Images,
    size: ImageSize,
    normalization: Normalization,
    amp: bool = False,
    resize: Resize = "crop",
) -> list[Right]:
    """The accuracy of each head, in eval mode. With five classes or fewer top5 is 1.

    Each rank takes a part of the images; all return the result of the whole.
    Args:
        size, resize: what the encoder sees of an image, see `plain_views`.
    """
    rows = np.arange(distributed.rank(), len(images), distributed.world_size())
    right = torch.zeros(len(method.heads), 2, len(images), device=images.device)
    seen, was_training = 0, method.training
    method.eval()
    for pixels in plain_views(images, size, rows, resize):
        x = augment.normalize(pixels, *normalization).contiguous(memory_format=torch.channels_last)
        at = torch.from_numpy(rows[seen : seen + len(x)]).to(images.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            scores = method.scores(x)
        for n, s in enumerate(scores):
            best = s.float().topk(min(5, s.shape[1]), dim=1).indices == images.labels[at, None]
            right[n, 0, at], right[n, 1, at] = best[:, 0].float(), best.any(1).float()
        seen += len(x)
    method.train(was_training)
    found = distributed.all_sum(right).cpu().bool()  # (heads, 2, M)
    counts = found.sum(2).tolist()
    return [
        Right(first / len(images), five / len(images), hits[0])
        for (first, five), hits in zip(counts, found, strict=True)
    ]
