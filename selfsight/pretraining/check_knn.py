"""kNN accuracy while an encoder is pretrained, on training images alone."""

import functools

import numpy as np
import torch

from selfsight import randomness
from selfsight.data.images import Images
from selfsight.errors import UserError
from selfsight.evaluate.features import extract
from selfsight.evaluate.knn import knn_accuracy
from selfsight.pretraining.build import image_size
from selfsight.pretraining.config import RunConfig
from selfsight.train.hooks import Hook, RunState
from selfsight.train.precision import pick_precision


def periodic_knn(config: RunConfig, images: Images, device: torch.device) -> Hook | None:
    """kNN accuracy within the training split: a fifth of its images is classified by the rest."""
    if config.save_best and images.classes is None:
        raise UserError("save_best=true: needs kNN accuracy, and these images have no labels")
    if config.evaluate.every_epochs == 0 or images.classes is None:
        return None
    count = min(config.evaluate.images, len(images))
    cut = max(1, count // 5)
    amp = pick_precision(config.precision, device) == "bf16"

    data, size = images.config, image_size(config.views)

    @functools.cache  # rank 0 alone measures
    def drawn() -> np.ndarray:
        return randomness.first_of(len(images), count, randomness.SPLIT, config.seed)

    def measure(state: RunState) -> dict[str, float]:
        order = drawn()
        how = {"amp": amp, "resize": config.evaluate.resize}
        x = extract(state.backbone, images, size, data.normalization, order, **how)
        labels = images.labels_of(images.replace_bad(order))  # others stand in for broken images
        accuracy = knn_accuracy(x[cut:], labels[cut:], x[:cut], labels[:cut], ks=(20,))
        return {"knn": accuracy[20]}

    return Hook(measure, epochs=config.evaluate.every_epochs)
