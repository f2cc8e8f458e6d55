"""The method of a configuration around its encoder."""

import hashlib

import torch
from torch import nn

from selfsight import randomness
from selfsight.encoders.artifact import encoder_file, is_ours, read_network
from selfsight.encoders.backbones import build_backbone
from selfsight.encoders.foreign import load_foreign
from selfsight.errors import UserError
from selfsight.methods import METHODS, Method
from selfsight.pretraining.config import RunConfig


def build_method(config: RunConfig) -> Method:
    """The method around its encoder, all weights a function of the seed, or read from `weights`.

    Raises: UserError for views or an encoder that the method cannot work with.
    """
    sizes = {group.size for group in config.views}
    backbone = build_backbone(config.backbone, image_size(config), config.seed, len(sizes) > 1)
    _check_views(config, backbone)
    if config.weights is not None:
        _start_from(backbone, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(randomness.WEIGHTS, config.seed, 1) >> 1)
        return METHODS[config.method.name](backbone, config.method)


def without_weights(config: RunConfig) -> RunConfig:
    """The same with an encoder that begins at random."""
    return config.model_copy(update={"weights": None})


def _check_views(config: RunConfig, backbone: nn.Module) -> None:
    """The method takes so many views, and the encoder views of these sizes."""
    name, count = config.method.name, sum(group.count for group in config.views)
    least, most = METHODS[name].view_count
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        hint = "remove `views` for the method's own, or change views.0.count"
        raise UserError(f"views: makes {count} of an image, {name} takes {wanted}; {hint}")
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    for number, group in enumerate(config.views):
        if patch and (group.size % patch[0] or group.size % patch[1]):
            raise UserError(
                f"views.{number}.size={group.size}: no multiple of {config.backbone.name}'s "
                f"patches of {patch[0]} pixels"
            )


def _start_from(backbone: nn.Module, config: RunConfig) -> None:
    """Fill the encoder strictly with the weights that it starts from."""
    path = encoder_file(config.weights)
    if is_ours(path):
        read_network(path).fill(backbone, config.backbone.name)
    else:
        load_foreign(path, backbone)


def with_hash(config: RunConfig) -> RunConfig:
    """With the hash of the weights it starts from, so that others are another run."""
    if config.weights is None:
        return config
    try:
        with encoder_file(config.weights).open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weights={config.weights}: {error.strerror}") from None
    if config.weights_sha256 not in (None, sha):
        raise UserError(f"weights={config.weights}: is not the file of weights_sha256 any more")
    return config.model_copy(update={"weights_sha256": sha})


def image_size(config: RunConfig) -> int:
    """Side in pixels that evaluation resizes to: that of the largest views."""
    return max(group.size for group in config.views)
