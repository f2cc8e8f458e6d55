"""The encoder and the method that a configuration describes."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from selfsight import distributed, randomness
from selfsight.encoders.artifact import INITIAL, encoder_file, is_ours, read_network
from selfsight.encoders.backbones import ImageSize, build_backbone
from selfsight.encoders.foreign import load_foreign
from selfsight.encoders.resample import resampled
from selfsight.encoders.timm_weights import PREFIX, find_timm
from selfsight.errors import UserError
from selfsight.files import Damaged, file_hash
from selfsight.methods import Method
from selfsight.methods.heads import EncoderWithProjection
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.own_parts import find_method
from selfsight.train.log import console
from selfsight.views.recipe import ViewGroup


def build_method(config: RunConfig) -> Method:
    """The method with its encoder. All weights follow from the seed, except those of an encoder
    that starts from `weights`.

    Raises: UserError for views or an encoder that the method does not work with.
    """
    name = config.method.name
    _check_view_count(name, sum(group.count for group in config.views))
    sizes = {f"views.{number}.size": group.size for number, group in enumerate(config.views)}
    channels = config.data.channels
    backbone = build_backbone(config.backbone, sizes, config.seed, channels=channels)
    initial = Path(config.run or "") / INITIAL
    if config.run and initial.is_file():  # its own code may begin with other weights each time
        read_network(initial).fill(backbone, config.backbone.name)
    head = {} if config.weights is None else _fill(backbone, config.weights, config.backbone.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, config.seed, 1))
        method = find_method(name)(backbone, config.method)
    if head:
        _fill_head(method, head, config.weights)
    return method


def check_part(config: RunConfig, method: Method) -> None:
    """Losses that compare images, and batch norm, need two images at a time or more."""
    ranks = distributed.world_size()
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.modules())
    alone = config.batch_size == ranks * config.accumulate and not config.sync_batchnorm
    if alone and (normed or method.couples_images):
        raise UserError(
            f"batch_size={config.batch_size}, accumulate={config.accumulate}: each of {ranks} "
            f"processes would compute one image at a time, of which batch norm and the loss of "
            f"{config.method.name} have no statistics; set a smaller accumulate or a larger "
            f"batch_size"
        )


def without_weights(config: RunConfig) -> RunConfig:
    """The same configuration with an encoder that starts at random."""
    return config.model_copy(update={"weights": None})


def _check_view_count(name: str, count: int) -> None:
    """The method takes this number of views of an image."""
    least, most = find_method(name).view_count
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        hint = "remove `views` for the method's own, or change views.0.count"
        raise UserError(f"views: makes {count} of an image, {name} takes {wanted}; {hint}")


def _fill(backbone: nn.Module, weights: str, name: str) -> dict[str, Tensor]:
    """Load the weights that the encoder starts from; each tensor must fit, but those for another
    number or size of patches are resampled, and a first convolution of RGB is adapted to other
    channels; `backbone.weights_changed` says what was done.

    Returns: the tensors of the head that a method such as SimCLR v2 kept; others have none.
    """
    path = weights_file(weights)
    if not is_ours(path):
        kind = "timm" if weights.startswith(PREFIX) else None
        loaded = load_foreign(path, backbone, kind, resample=True)
        backbone.weights_changed = loaded.resampled
        _say(f"weights={weights}: {loaded.line()}")
        return {}
    network, head = read_network(path).without_head()
    tensors, made = resampled(network.tensors, backbone)
    replace(network, tensors=tensors).fill(backbone, name)
    backbone.weights_changed = made
    if made:
        _say(f"weights={weights}: {made}")
    return head


def weights_file(weights: str) -> Path:
    """The file that the key `weights` names. Raises: UserError if there is none."""
    return find_timm(weights).file if weights.startswith(PREFIX) else encoder_file(weights)


def _fill_head(method: Method, head: dict[str, Tensor], weights: str) -> None:
    """Load the kept head into a method that keeps one of the same widths."""
    own = getattr(method.backbone, "head", None)
    own = own if isinstance(method.backbone, EncoderWithProjection) else None
    shapes = {key: value.shape for key, value in own.state_dict().items()} if own else {}
    if shapes == {key: value.shape for key, value in head.items()}:
        own.load_state_dict(head)
        _say(f"weights={weights}: its head, which SimCLR v2 keeps in the encoder, is used as well")
    else:
        _say(
            f"weights={weights}: its head is left out, for {method.config.name} keeps "
            f"{'one of other widths' if own else 'none'} in the encoder"
        )


def _say(line: str) -> None:
    if distributed.rank() == 0:
        console.print(line, soft_wrap=True)


def with_hash(config: RunConfig) -> RunConfig:
    """The configuration with the hash of its weights file, so that another file is another run."""
    if config.weights is None:
        return config
    try:
        sha = file_hash(weights_file(config.weights))
    except (OSError, Damaged) as error:
        reason = error.reason if isinstance(error, Damaged) else error.strerror
        raise UserError(f"weights={config.weights}: {reason}") from None
    if config.weights_sha256 not in (None, sha):
        raise UserError(
            f"weights={config.weights}: the hash of this file is not weights_sha256; restore the "
            f"file, or start another run without weights_sha256"
        )
    return config.model_copy(update={"weights_sha256": sha})


def image_size(views: list[ViewGroup]) -> ImageSize:
    """Of the images in an evaluation, in pixels: that of the largest views."""
    return max(views, key=lambda group: math.prod(group.sides)).size
