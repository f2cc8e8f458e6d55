"""The accuracy of a classifier: over all ranks, each image exactly once."""

from dataclasses import dataclass

import numpy as np
import torch

from selfsight import distributed
from selfsight.batch import Normalization
from selfsight.data.images import Images
from selfsight.encoders.backbones import ImageSize
from selfsight.encoders.shown import Resize
from selfsight.evaluate.classifiers import Classifier
from selfsight.evaluate.features import plain_views
from selfsight.views.ops import augment


@dataclass(frozen=True)
class Right:
    """One head's accuracy: fractions of images whose class has the highest score, or one of the
    five highest."""

    top1: float
    top5: float


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
    counts = torch.zeros(len(method.heads), 2, dtype=torch.long, device=images.device)
    seen, was_training = 0, method.training
    method.eval()
    for pixels in plain_views(images, size, rows, resize):
        x = augment.normalize(pixels, *normalization).contiguous(memory_format=torch.channels_last)
        labels = images.labels[torch.from_numpy(rows[seen : seen + len(x)]).to(images.device)]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            scores = method.scores(x)
        for n, s in enumerate(scores):
            best = s.float().topk(min(5, s.shape[1]), dim=1).indices == labels[:, None]
            counts[n] += torch.stack([best[:, 0].sum(), best.sum()])
        seen += len(x)
    method.train(was_training)
    found = distributed.all_sum(counts).tolist()
    return [Right(first / len(images), five / len(images)) for first, five in found]
