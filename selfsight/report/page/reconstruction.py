"""What a method that predicts hidden pixels, MAE or SimMIM, makes of images, from the newest
checkpoint of its run: an encoder's file holds no decoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfsight.batch import Normalization, batch_of
from selfsight.encoders.description import Budget
from selfsight.errors import UserError
from selfsight.methods import MAE, METHODS, SimMIM
from selfsight.methods import vit as patches_of
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import RunConfig, read_run_config
from selfsight.train.checkpoint import Checkpoints, misfit, read_checkpoint
from selfsight.views.ops import augment

HIDDEN = 0.5  # gray of a patch that the encoder does not see
EPSILON = 1e-6  # added to a patch's variance, as in `losses.mae`


@dataclass(frozen=True)
class Reconstruction:
    """Images and their predicted pixels, each (B, C, h, w) in [0, 1].

    Attributes:
        masked: what the encoder sees, hidden patches gray.
        predicted: all patches as predicted; of those that the encoder sees no loss is taken.
        composite: hidden patches as predicted, the others as they are.
        scaled: a prediction is relative to its patch: the patch's own mean and standard deviation
            were used to draw it.
    """

    original: Tensor
    masked: Tensor
    predicted: Tensor
    composite: Tensor
    scaled: bool


def predicts_pixels(config: RunConfig) -> bool:
    """Whether a run's method has pixels to show."""
    return issubclass(METHODS.get(config.method.name, object), MAE | SimMIM)


def trained_method(run: Path) -> tuple[MAE | SimMIM, int]:
    """The method of a run in eval mode, from its newest checkpoint, and that checkpoint's step.

    Raises: UserError if there is no checkpoint, or if it is damaged or of another run.
    """
    config = read_run_config(run)
    files = Checkpoints(run / "checkpoints").files()
    if not files:
        raise UserError(f"'{run}': no checkpoint, which holds the decoder; it was removed")
    step, file = files[-1]
    _, state = read_checkpoint(file, torch.device("cpu"), f"'{file}'")
    found = state.get("method")
    values = found.values() if isinstance(found, dict) else ()
    tensors = [value for value in values if isinstance(value, Tensor)]
    # all weights come from the checkpoint, also those of a run that started from others
    config = config.model_copy(update={"run": None, "weights": None})
    with Budget(len(tensors), sum(t.numel() for t in tensors), str(file)):
        method = build_method(config)
    reason = misfit(state, {"method": method}, config.identity())
    if reason:
        raise UserError(f"'{file}': cannot be used: {reason}")
    method.load_state_dict(found)
    return method.eval().requires_grad_(False), step


@torch.no_grad()
def reconstruct(
    method: MAE | SimMIM, images: Tensor, normalization: Normalization, seed: int = 0
) -> Reconstruction:
    """Hide patches as in training, and predict them.

    Args:
        method: in eval mode.
        images: (B, C, h, w) in [0, 1], of the size that the method was trained with.
        seed: the same one hides the same patches.

    >>> method = MAE(testing.tiny_vit(16)).eval()
    >>> images = torch.rand(2, 3, 16, 16)
    >>> reconstruct(method, images, Normalization((0.5,) * 3, (0.5,) * 3)).composite.shape
    torch.Size([2, 3, 16, 16])
    """
    x = augment.normalize(images, *normalization)
    target = patches_of.patches(x, method.backbone)  # (B, N, C P P)
    prediction, mask, _ = method.predict(batch_of(x, seed=seed))
    scaled = bool(getattr(method.config, "norm_pix", False))
    if scaled:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        prediction = prediction * (var + EPSILON).sqrt() + mean
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
    predicted = (_joined(prediction, method, x) * std + mean).clamp(0, 1)
    hidden = _joined(mask[..., None].expand_as(target).float(), method, x) > 0.5
    return Reconstruction(
        images,
        torch.where(hidden, torch.tensor(HIDDEN), images),
        predicted,
        torch.where(hidden, predicted, images),
        scaled,
    )


def _joined(patches: Tensor, method: MAE | SimMIM, like: Tensor) -> Tensor:
    """(B, N, C P P) -> (B, C, H, W): the inverse of `methods.vit.patches`."""
    embed = method.backbone.patch_embed
    rows, columns = embed.dynamic_feat_size(like.shape[2:])
    height, width = embed.patch_size
    x = patches.view(len(like), rows, columns, height, width, like.shape[1])
    return x.permute(0, 5, 1, 3, 2, 4).reshape(like.shape)
