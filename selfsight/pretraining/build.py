"""The encoder and the method that a configuration describes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsight import distributed, randomness
from selfsight.batch import ImageSize, sides
from selfsight.data.images import Images
from selfsight.encoders.artifact import INITIAL, is_ours, read_network
from selfsight.encoders.backbones import build_backbone
from selfsight.encoders.foreign import load_foreign
from selfsight.encoders.foreign.read import weights_file_hash
from selfsight.encoders.resample import resampled
from selfsight.encoders.timm_weights import PREPROCESSOR, describes_itself, find_timm
from selfsight.errors import UserError
from selfsight.files import Damaged
from selfsight.logging.log import console
from selfsight.methods import Method
from selfsight.methods.heads import EncoderWithProjection
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.own_parts import find_method
from selfsight.pretraining.teacher import TeacherConfig, build_teacher, check_cache
from selfsight.pretraining.weights import weights_file
from selfsight.views.recipe import ViewGroup


def build_method(config: RunConfig, images: Images | None = None) -> Method:
    """The method with its encoder. All weights follow from the seed, except those of an encoder
    that starts from `weights`, and of a frozen teacher.

    Args:
        images: that it is trained on, if they have been opened.
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
    head, adapted = {}, ""
    if config.weights is not None:
        head, adapted = _fill(backbone, config.weights, config.backbone.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, config.seed, 1))
        method = find_method(name)(backbone, config.method, **_teacher(config, images))
    method.adapted = adapted  # of the weights that it starts from, for its encoder's description
    if head:
        _fill_head(method, head, config.weights)
    return method


def check_start(config: RunConfig) -> None:
    """Raises: UserError for keys of a teacher that do not fit the method, and for a run at random
    whose method stays close to what it starts from."""
    _check_teacher(config)
    optional = find_method(config.method.name).frozen_teacher == "optional"
    if optional and not config.teacher.weights and (config.resume or not config.weights):
        raise UserError(
            f"teacher.weights=null: {config.method.name} keeps close to the encoder that it "
            f"starts from, and this run starts at random; set weights=..., or teacher.weights"
        )


def _check_teacher(config: RunConfig) -> None:
    """Raises: UserError for keys of a teacher that the method has not, or that is missing."""
    method, needs = config.method.name, find_method(config.method.name).frozen_teacher
    given = [k for k, v in config.teacher if v != TeacherConfig.model_fields[k].default]
    if given and needs == "no":
        raise UserError(
            f"teacher.{given[0]}: {method} has no frozen teacher; leave out all keys of `teacher`, "
            f"or set method=distill"
        )
    if config.teacher.weights is None and (given or needs == "required"):
        raise UserError(
            f"teacher.weights=null: {method} learns from a frozen teacher; set it to a run's "
            f"folder, a file of weights, or timm:NAME.TAG"
        )


def _teacher(config: RunConfig, images: Images | None) -> dict[str, Any]:
    """Further arguments of a method with a frozen teacher; {} for another."""
    _check_teacher(config)
    needs, given = find_method(config.method.name).frozen_teacher, config.teacher.weights
    if given is None:
        return {}
    size = image_size(config.views)
    data = config.data if images is None else images.config  # with mean and std as measured
    teacher, said = build_teacher(config.teacher, data, config.views, size, config.seed)
    sample = torch.zeros(1, config.data.channels, *sides(size))
    if config.teacher.cache and images is not None:
        views = sum(group.count for group in config.views)
        check_cache(teacher, sample, len(images), views)
    if said:
        _say(f"teacher.weights={given}: {said}")
    return {"teacher": teacher, "sample": sample} if needs == "required" else {"teacher": teacher}


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


def _fill(backbone: nn.Module, weights: str, name: str) -> tuple[dict[str, Tensor], str]:
    """Load the weights that the encoder starts from; each tensor must fit, but those for another
    number or size of patches are resampled, and a first convolution of RGB is adapted to other
    channels.

    Returns: the tensors of the head that a method such as SimCLR v2 kept; others have none. And
    what was adapted, as part of a sentence.
    """
    path = weights_file(weights)
    if not is_ours(path):
        found = find_timm(weights) if describes_itself(weights) else None
        loaded = load_foreign(path, backbone, found and found.format, resample=True)
        _say(f"weights={weights}: {loaded.line()}")
        if found and found.mean is None:
            _say(
                f"weights={weights}: no {PREPROCESSOR} says what its images were normalised with; "
                f"here it is data.mean and data.std"
            )
        return {}, loaded.resampled
    network, head = read_network(path).without_head()
    tensors, made = resampled(network.tensors, backbone)
    replace(network, tensors=tensors).fill(backbone, name)
    if made:
        _say(f"weights={weights}: {made}")
    return head, made


def _fill_head(method: Method, head: dict[str, Tensor], weights: str) -> None:
    """Load the kept head into a method that keeps one of the same widths."""
    own = getattr(method.backbone, "head", None)
    own = own if isinstance(method.backbone, EncoderWithProjection) else None
    shapes = {key: value.shape for key, value in own.state_dict().items()} if own else {}
    if shapes == {key: value.shape for key, value in head.items()}:
        own.load_state_dict(head)
        own.weights_were_loaded = True
        _say(f"weights={weights}: its head, which SimCLR v2 keeps in the encoder, is used as well")
    else:
        _say(
            f"weights={weights}: its head is left out, for {method.config.name} keeps "
            f"{'one of other widths' if own else 'none'} in the encoder"
        )


def loaded_part(backbone: nn.Module) -> nn.Module:
    """The encoder that `weights` filled: without a layer of a head that is new."""
    kept = isinstance(backbone, EncoderWithProjection)
    new = kept and not getattr(backbone.head, "weights_were_loaded", False)
    return backbone.backbone if new else backbone


def _say(line: str) -> None:
    if distributed.rank() == 0:
        console.print(line, soft_wrap=True)


def with_hash(config: RunConfig) -> RunConfig:
    """The configuration with the hashes of its files of weights, so that others are another run."""
    if config.weights is not None:
        sha = _hash(config.weights, config.weights_sha256, "weights")
        config = config.model_copy(update={"weights_sha256": sha})
    teacher = config.teacher
    if teacher.weights is not None:
        sha = _hash(teacher.weights, teacher.weights_sha256, "teacher.weights")
        teacher = teacher.model_copy(update={"weights_sha256": sha})
        config = config.model_copy(update={"teacher": teacher})
    return config


def _hash(weights: str, recorded: str | None, key: str) -> str:
    """The hash of a file of weights. Raises: UserError if it is not the one that was recorded."""
    try:
        sha = weights_file_hash(weights_file(weights, key))
    except (OSError, Damaged) as error:
        reason = error.reason if isinstance(error, Damaged) else error.strerror
        raise UserError(f"{key}={weights}: {reason}") from None
    if recorded not in (None, sha):
        raise UserError(
            f"{key}={weights}: the hash of this file is not {key}_sha256; restore the file, or "
            f"start another run without {key}_sha256"
        )
    return sha


def image_size(views: list[ViewGroup]) -> ImageSize:
    """Of the images in an evaluation, in pixels: that of the largest views."""
    return max(views, key=lambda group: math.prod(group.sides)).size
