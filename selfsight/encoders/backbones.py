"""Encoders by name: any timm model without its classifier, adapted to the size of the images."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsight import own, randomness
from selfsight.batch import ImageSize, sides
from selfsight.config import Config, added, near
from selfsight.encoders.attempts import Arguments, attempts, must_know_its_size
from selfsight.encoders.given import build_part
from selfsight.encoders.stems import adapt_stem, skip_before, to_gray
from selfsight.errors import UserError

_WEIGHTS = "weights come from a file: leave it out, and set weights=FILE to start from weights"
# arguments of timm.create_model that are no options of an encoder, the value that changes nothing,
# and what to do instead
NOT_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("num_classes", 0, "an encoder has no classifier; leave it out"),
    ("features_only", False, "an encoder gives one vector of an image; leave it out"),
    ("pretrained", False, _WEIGHTS),
    ("checkpoint_path", "", _WEIGHTS),
    ("pretrained_cfg", None, _WEIGHTS),
    ("pretrained_cfg_overlay", None, _WEIGHTS),
    ("cache_dir", None, _WEIGHTS),
)


class BackboneConfig(Config):
    """Which encoder; it always starts from random weights drawn from the seed."""

    # any name of timm.list_models(), or an encoder of your own: FILE.py:NAME
    name: str = Field("resnet18", max_length=200)
    small_images: bool = False  # ResNets: 3x3 stem of stride 1 and no max-pool, as for 32 px
    stem_stride: int = Field(
        1, ge=1, le=4
    )  # with small_images: stride of the stem; 2 is 4x cheaper
    # with small_images, for weights of other libraries: solo-learn pads its stem by 2, lightly's
    # CIFAR benchmark has no ReLU after it
    stem_padding: int = Field(1, ge=0, le=2)
    stem_relu: bool = True
    image_size: int | None = Field(None, ge=1)  # ViTs: side in pixels (default: the views' size)
    patch_size: int | None = Field(None, ge=1)  # ViTs: side of a patch in pixels
    drop_path: float = Field(0.0, ge=0, lt=1)  # stochastic depth
    options: dict[str, Any] = Field({})  # further arguments of the timm model
    # epsilon of every layer norm, for weights of other libraries (default: that of the timm model)
    norm_eps: float | None = added(None, gt=0, lt=1)


def build_backbone(
    config: BackboneConfig,
    sizes: ImageSize | Mapping[str, ImageSize],
    seed: int,
    width: int | None = None,
    channels: int = 3,
) -> nn.Module:
    """An encoder (B, C, h, w) -> (B, num_features); its weights are a function of the seed.

    `num_features` is measured, since for some models timm's number is not the width of the output.

    Args:
        sizes: of the images in pixels; or several sizes, by the key that sets each. A model that
            must know its size is built for the largest, and interpolates for the others.
        width: D, if it was measured before; then the model is not tried.
        channels: C, of the images.
    Raises: UserError for a name or an option that timm does not know, and for a model that does
        not give one vector of an image of each size.
    """
    import timm  # one second: only commands that build an encoder pay for it

    sizes = sizes if isinstance(sizes, Mapping) else {"image_size": sizes}
    if not timm.is_model(config.name):
        backbone = _own(config, sizes if width is None else {}, seed, channels)
        backbone.num_features = width or _measured(backbone, config.name, sizes, channels)
        return backbone
    largest = dict([max(sizes.items(), key=lambda item: math.prod(sides(item[1])))])
    options = _options(config, channels)
    build = functools.partial(_build, config, options, seed, channels, measured=width is None)
    first, second = attempts(config, *largest.values(), len(set(sizes.values())) > 1)
    if width is not None and "img_size" not in first and must_know_its_size(config.name):
        try:  # which of both it was built with; on "meta", where no image takes memory
            with torch.device("meta"):
                build(first, largest, measured=True)
        except UserError:
            first = second
    try:
        taken, backbone = first, build(first, largest)
    except UserError as refused:
        try:
            taken, backbone = second, build(second, largest)
        except UserError as error:  # the one that was built for this size says more
            raise (refused if "img_size" in first else error) from None
    try:
        width = width or _measured(backbone, config.name, sizes, channels)
    except UserError:
        if len(sizes) == 1:
            raise
        backbone = build({**taken, "dynamic_img_size": True, "strict_img_size": False}, sizes)
        width = _measured(backbone, config.name, sizes, channels)
    backbone.num_features = width
    return backbone


def _own(
    config: BackboneConfig, sizes: Mapping[str, ImageSize], seed: int, channels: int
) -> nn.Module:
    """An encoder of the user's own. Raises: UserError for a name that nobody knows."""
    part = own.find("backbone", config.name)
    if part is None:
        import timm

        names = [*timm.list_models(), *own.registered("backbone")]
        hint = near(config.name, names) or " List them with timm.list_models()."
        raise UserError(f"backbone.name={config.name}: timm has no such model.{hint}")
    allowed = BackboneConfig(name=config.name, options=config.options)
    for key in config.model_fields_set:
        if getattr(config, key) != getattr(allowed, key):
            raise UserError(
                f"backbone.{key}={getattr(config, key)}: only for timm's models; arguments of "
                f"{config.name} are backbone.options"
            )
    return build_part(part, config.options, sizes, seed, channels)


def _options(config: BackboneConfig, channels: int) -> Arguments:
    """The arguments of the timm model that the configuration sets. Raises: UserError for those
    that would make it another thing than an encoder of images with these channels."""
    options = dict(config.options)
    for key, harmless, remedy in NOT_OPTIONS:
        if options.pop(key, harmless) != harmless:
            raise UserError(f"backbone.options.{key}={config.options[key]}: {remedy}")
    if channels != 3 and options.setdefault("in_chans", channels) != channels:
        raise UserError(
            f"backbone.options.in_chans={options['in_chans']}: the images have "
            f"data.channels={channels}; leave it out"
        )
    if channels == 3 and options.get("in_chans") not in (None, 1, 3):
        raise UserError(
            f"backbone.options.in_chans={options['in_chans']}: images have three channels; leave "
            f"it out, set 1 for an encoder that sees the mean of the three, or read images of "
            f"other channels with data.channels"
        )
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.patch_size:
        options["patch_size"] = config.patch_size
    if config.image_size:
        options["img_size"] = config.image_size
    return options


def _build(
    config: BackboneConfig,
    options: Arguments,
    seed: int,
    channels: int,
    more: Arguments,
    sizes: Mapping[str, ImageSize],
    measured: bool,
) -> nn.Module:
    """The model with these options and with those of the further arguments that it takes.

    Raises: UserError if timm refuses an option, or if the model does not work at these sizes.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        while True:
            torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, seed))
            try:
                arguments = {"pretrained": False, "num_classes": 0, **options, **more}
                backbone = timm.create_model(config.name, **arguments)
                # for an export, which lets timm build the same once more
                backbone.timm_arguments = {**options, **more}
                break
            except Exception as error:  # timm's models raise anything
                refused = [key for key in more if f"'{key}'" in str(error)]
                if isinstance(error, TypeError) and refused:
                    more = {key: value for key, value in more.items() if key not in refused}
                    continue
                asked = options if isinstance(error, TypeError) else {**options, **more}
                given = ", ".join(f"{k}={v}" for k, v in asked.items())
                given = f" with {given}" if given else ""
                raise UserError(f"backbone.name={config.name}{given}: {_line(error)}") from None
        if config.small_images:
            stem = config.stem_stride, config.stem_padding, config.stem_relu
            adapt_stem(backbone, config.name, *stem)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            skip_before(module)
    if config.norm_eps is not None:
        _set_norm_eps(backbone, config)
    if channels == 3 and options.get("in_chans") == 1:
        for entrance in (backbone, getattr(backbone, "patch_embed", None)):
            if entrance is not None:  # methods on patches call the second
                entrance.register_forward_pre_hook(to_gray)
        backbone.image_channels = channels
    if measured:
        _measured(backbone, config.name, sizes, channels)
    return backbone


def _set_norm_eps(backbone: nn.Module, config: BackboneConfig) -> None:
    norms = [module for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
    if not norms:
        raise UserError(
            f"backbone.norm_eps={config.norm_eps}: {config.name} has no layer norm; leave it out"
        )
    for norm in norms:
        norm.eps = config.norm_eps


def _measured(backbone: nn.Module, name: str, sizes: Mapping[str, ImageSize], channels: int) -> int:
    """The width D of the features, from an image of each size.

    Raises: UserError if the model fails on one, or gives anything but one vector.
    """
    shapes = {
        key: _features_shape(backbone, name, key, size, channels) for key, size in sizes.items()
    }
    for key, shape in shapes.items():
        if len(shape) != 2 or shape[0] != 1 or shape != next(iter(shapes.values())):
            raise UserError(
                f"backbone.name={name}: gives {shape} for an image of {key}={sizes[key]} and not "
                f"one vector (1, D); change backbone.options, or choose another model"
            )
    return shape[1]


@torch.no_grad()
def _features_shape(
    backbone: nn.Module, name: str, key: str, size: ImageSize, channels: int
) -> tuple[int, ...]:
    """The shape of what the model gives for one image of this size."""
    height_width = sides(size)
    project = getattr(getattr(backbone, "patch_embed", None), "proj", None)
    if isinstance(project, nn.Conv2d) and project.stride == project.kernel_size:  # no overlap
        pairs = zip(height_width, project.stride, strict=True)
        side = next((patch for side, patch in pairs if side % patch), None)
        if side:
            raise UserError(
                f"{key}={size}: not a multiple of {side} pixels, the side of the patches of "
                f"{name}; choose a multiple"
            )
    training = backbone.training
    backbone.eval()
    try:
        output = backbone(torch.zeros(1, channels, *height_width))
    except Exception as error:  # as above
        raise UserError(
            f"backbone.name={name}: does not work on images of {key}={size} pixels "
            f"({_line(error)}); choose another size or another model"
        ) from None
    finally:
        backbone.train(training)
    if not isinstance(output, Tensor):
        raise UserError(
            f"backbone.name={name}: gives a {type(output).__name__} and not one vector of an "
            f"image; change backbone.options, or choose another model"
        )
    return tuple(output.shape)


def accepts(backbone: nn.Module, size: ImageSize, channels: int = 3) -> bool:
    """Whether the encoder gives its features for images of this size, too."""
    try:
        return _measured(backbone, "", {"image_size": size}, channels) == backbone.num_features
    except UserError:
        return False


def _line(error: Exception) -> str:
    """The text of an error as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
