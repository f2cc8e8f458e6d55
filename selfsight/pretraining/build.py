"""The encoder and the method that a configuration describes."""

import torch
from torch import nn

from selfsight import randomness
from selfsight.encoders.artifact import encoder_file, is_ours, read_network
from selfsight.encoders.backbones import build_backbone
from selfsight.encoders.foreign import load_foreign
from selfsight.errors import UserError
from selfsight.files import Damaged, file_hash
from selfsight.methods import METHODS, Method
from selfsight.pretraining.config import RunConfig
from selfsight.views.recipe import ViewGroup


def build_method(config: RunConfig) -> Method:
    """The method with its encoder. All weights follow from the seed, except those of an encoder
    that starts from `weights`.

    Raises: UserError for views or an encoder that the method does not work with.
    """
    name, sizes = config.method.name, [group.size for group in config.views]
    backbone = build_backbone(config.backbone, max(sizes), config.seed, len(set(sizes)) > 1)
    _check_view_count(name, sum(group.count for group in config.views))
    _check_view_sizes(sizes, backbone, config.backbone.name)
    if config.weights is not None:
        _fill(backbone, config.weights, config.backbone.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, config.seed, 1))
        return METHODS[name](backbone, config.method)


def without_weights(config: RunConfig) -> RunConfig:
    """The same configuration with an encoder that starts at random."""
    return config.model_copy(update={"weights": None})


def _check_view_count(name: str, count: int) -> None:
    """The method takes this number of views of an image."""
    least, most = METHODS[name].view_count
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        hint = "remove `views` for the method's own, or change views.0.count"
        raise UserError(f"views: makes {count} of an image, {name} takes {wanted}; {hint}")


def _check_view_sizes(sizes: list[int], backbone: nn.Module, name: str) -> None:
    """An encoder that cuts images into patches takes views of these sizes."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    for number, size in enumerate(sizes):
        if patch and (size % patch[0] or size % patch[1]):
            raise UserError(
                f"views.{number}.size={size}: not a multiple of {patch[0]} pixels, the side of the "
                f"patches of {name}; choose a multiple"
            )


def _fill(backbone: nn.Module, weights: str, name: str) -> None:
    """Load the weights that the encoder starts from; each tensor must fit."""
    path = encoder_file(weights)
    if is_ours(path):
        read_network(path).fill(backbone, name)
    else:
        load_foreign(path, backbone)


def with_hash(config: RunConfig) -> RunConfig:
    """The configuration with the hash of its weights file, so that another file is another run."""
    if config.weights is None:
        return config
    try:
        sha = file_hash(encoder_file(config.weights))
    except (OSError, Damaged) as error:
        reason = error.reason if isinstance(error, Damaged) else error.strerror
        raise UserError(f"weights={config.weights}: {reason}") from None
    if config.weights_sha256 not in (None, sha):
        raise UserError(
            f"weights={config.weights}: the hash of this file is not weights_sha256; restore the "
            f"file, or start another run without weights_sha256"
        )
    return config.model_copy(update={"weights_sha256": sha})


def image_size(views: list[ViewGroup]) -> int:
    """The side in pixels of the images in an evaluation: that of the largest views."""
    return max(group.size for group in views)
