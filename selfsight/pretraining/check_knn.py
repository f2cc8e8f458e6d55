"""kNN accuracy while an encoder is pretrained, on training images alone."""

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
    if config.save_best and images.labels is None:
        raise UserError("save_best=true: needs kNN accuracy, and these images have no labels")
    if config.evaluate.every_epochs == 0 or images.labels is None:
        return None
    order = randomness.permutation(len(images), randomness.SPLIT, config.seed)
    order = order[: config.evaluate.images]
    cut = max(1, len(order) // 5)
    amp = pick_precision(config.precision, device) == "bf16"

    data, size = images.config, image_size(config.views)

    def measure(state: RunState) -> dict[str, float]:
        how = {"amp": amp, "resize": config.evaluate.resize}
        x = extract(state.backbone, images, size, data.normalization, order, **how)
        shown = torch.from_numpy(images.replace_bad(order))  # others stand in for broken images
        labels = images.labels[shown]
        accuracy = knn_accuracy(x[cut:], labels[cut:], x[:cut], labels[:cut], ks=(20,))
        return {"knn": accuracy[20]}

    return Hook(measure, epochs=config.evaluate.every_epochs)
