"""The views of a run that names none: those of its method, for the channels of its images."""

from selfsight.config import Tree
from selfsight.methods import METHODS
from selfsight.pretraining import own_parts
from selfsight.views.recipe import preset_for


def default_views(tree: Tree) -> tuple[list[Tree], str]:
    """The groups of the method's preset, and what they are called: its small variant for
    backbone.small_images, and without colours for images that are not RGB.

    Args:
        tree: a configuration that is not validated yet.
    """
    method = tree.get("method")
    name = method.get("name", "simclr") if isinstance(method, dict) else "simclr"
    known = METHODS.get(name) or own_parts.own_method(name)
    views = "simclr" if known is None else known.default_views
    backbone = tree.get("backbone")
    small = isinstance(backbone, dict) and backbone.get("small_images") is True
    channels = channels_of(tree)
    return preset_for(f"{views}-small" if small else views, channels)


def channels_of(tree: Tree) -> int:
    """data.channels of a configuration that is not validated yet."""
    data = tree.get("data")
    channels = data.get("channels", 3) if isinstance(data, dict) else 3
    return channels if isinstance(channels, int) else 3
