"""What to ask of a model of timm beyond its options: models take different arguments."""

from typing import TYPE_CHECKING, Any

from selfsight.batch import ImageSize

if TYPE_CHECKING:
    from selfsight.encoders.backbones import BackboneConfig

Arguments = dict[str, Any]


def must_know_its_size(name: str) -> bool:
    """Whether timm says that the model is built for images of one size."""
    from timm.models import get_pretrained_cfg

    about = get_pretrained_cfg(name)
    return about is None or bool(about.fixed_input_size)


def attempts(
    config: "BackboneConfig", size: ImageSize, sizes_vary: bool
) -> tuple[Arguments, Arguments]:
    """What to ask of the model beyond its options; it may refuse each argument. The second is
    for a model that does not work with the first.

    The order follows the name, so that a model that works either way keeps the weights that it
    always had; a name says nothing else, for many models are called vit and take any size.
    """
    plain: Arguments = {}
    among = config.image_size or "img_size" in config.options
    sized = plain if among else {"img_size": size}
    transformer = "vit" in config.name or "deit" in config.name
    if not (transformer or config.image_size):
        return plain, sized
    if config.options.get("global_pool", "token") != "token":
        # the last normalisation stays on the tokens, where methods read them
        plain = {"fc_norm": False, **plain}
    if sizes_vary:
        plain = {"dynamic_img_size": True, **plain}
    return {**plain, **sized}, plain
