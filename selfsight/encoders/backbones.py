"""Encoders by name: any timm model without its classifier, adapted to the size of the images."""

from typing import Any

import torch
from pydantic import Field, field_validator
from torch import nn

from selfsight import randomness
from selfsight.config import Config, near
from selfsight.data.source import first_line
from selfsight.errors import UserError

# arguments of timm that read a file, or fetch one from the network
FILES = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


class BackboneConfig(Config):
    """Which encoder; it always starts from random weights drawn from the seed."""

    name: str = Field("resnet18", max_length=200)  # any name of timm.list_models()
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

    @field_validator("options")
    @classmethod
    def _reads_no_file(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in FILES & options.keys():
            raise ValueError(f"{key} would load weights; name their file with weights=FILE")
        return options


def build_backbone(
    config: BackboneConfig, image_size: int, seed: int, sizes_vary: bool = False
) -> nn.Module:
    """An encoder (B, 3, s, s) -> (B, num_features); its weights are a function of the seed.

    Args:
        image_size: side of the images in pixels, for models that must know it.
        sizes_vary: ViTs: also take images of other sizes, with their positions interpolated.
    Raises: UserError for a name or an option that timm does not know.
    """
    import timm  # one second: only commands that build an encoder pay for it

    if not timm.is_model(config.name):
        hint = near(config.name, timm.list_models()) or " List them with timm.list_models()."
        raise UserError(f"backbone.name={config.name}: timm has no such model.{hint}")
    options = dict(config.options)
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.patch_size:
        options["patch_size"] = config.patch_size
    transformer = "vit" in config.name or "deit" in config.name or config.image_size
    if transformer:
        options["img_size"] = config.image_size or image_size
        if sizes_vary:
            options["dynamic_img_size"] = True
        if options.get("global_pool", "token") != "token":
            # the last normalisation stays on the tokens, where methods read them
            options.setdefault("fc_norm", False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, seed))
        try:
            backbone = timm.create_model(config.name, pretrained=False, num_classes=0, **options)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # timm checks few options, so that any operation may fail
            given = ", ".join(f"{k}={v}" for k, v in options.items())
            raise UserError(
                f"backbone.name={config.name} with {given}: {first_line(error)}"
            ) from None
        if config.small_images:
            _adapt_stem(backbone, config)
    return backbone


def _adapt_stem(backbone: nn.Module, config: BackboneConfig) -> None:
    """Put a small stem in place of 7x7, stride 2 and max-pool, which leave 8x8 of 32x32 pixels."""
    stem = getattr(backbone, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise UserError(
            f"backbone.small_images=true: only for ResNets with one stem convolution, not "
            f"{config.name}; ViTs take backbone.patch_size instead"
        )
    kernel = 3 if config.stem_stride == 1 else 2 * config.stem_stride
    backbone.conv1 = nn.Conv2d(
        stem.in_channels,
        stem.out_channels,
        kernel,
        config.stem_stride,
        config.stem_padding,
        bias=False,
    )
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()
    if not config.stem_relu:
        backbone.act1 = nn.Identity()
