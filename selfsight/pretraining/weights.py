"""Keys of a configuration that follow from its weights."""

from pathlib import Path
from typing import Any

from selfsight.config import Tree, flatten, merge
from selfsight.encoders.artifact import encoder_file
from selfsight.encoders.timm_weights import describes_itself, find_timm
from selfsight.errors import UserError
from selfsight.pretraining.default_views import channels_of
from selfsight.pretraining.origins import Origins

OF_ANY_MODEL = ("backbone.drop_path",)  # keys that stay though another model is loaded


def weights_file(weights: str, key: str = "weights") -> Path:
    """The file that this key names. Raises: UserError if there is none."""
    if not describes_itself(weights):
        return encoder_file(weights)
    try:
        return find_timm(weights).file
    except UserError as error:  # which speaks of `weights`
        raise UserError(str(error).replace("weights=", f"{key}=")) from None


def with_model(tree: Tree, origins: Origins) -> Tree:
    """With weights that say of which model they are, that model, and the mean and std of its
    images. What the layer that names the weights, or a later one, sets stays, and so does
    `drop_path`, which any model has; and another `backbone.name` from there is another encoder,
    which takes nothing over."""
    weights = tree.get("weights")
    if not isinstance(weights, str) or not describes_itself(weights):
        return tree
    found, origin = find_timm(weights), f"weights={weights}"
    if origins.is_below("backbone.name", "weights"):
        section, model = tree.get("backbone"), found.backbone()
        section = section if isinstance(section, dict) else {}
        kept = _not_below(section, "backbone", origins)
        for key, _ in flatten({"backbone": section}):
            if origins.is_below(key, "weights") and key not in OF_ANY_MODEL:
                origins.forget(key)
        own = {key for key, _ in flatten({"backbone": kept})}
        origins.record(
            {key: v for key, v in flatten({"backbone": model}) if key not in own}, origin
        )
        tree = {**tree, "backbone": merge(model, kept)}
    # colours of RGB say nothing of other channels
    colours = {"mean": found.mean, "std": found.std} if channels_of(tree) == 3 else {}
    free = {
        key: list(value)
        for key, value in colours.items()
        if value is not None and origins.is_below(f"data.{key}", "weights")
    }
    if free:
        origins.record({"data": free}, origin)
        tree = merge(tree, {"data": free})
    return tree


def _not_below(section: Any, path: str, origins: Origins) -> Tree:
    """The keys of a section that the layer of the weights, or a later one, sets."""
    kept: Tree = {}
    for key, value in section.items():
        inside = f"{path}.{key}"
        if isinstance(value, dict) and value:
            value = _not_below(value, inside, origins)
            kept |= {key: value} if value else {}
        elif inside in OF_ANY_MODEL or not origins.is_below(inside, "weights"):
            kept[key] = value
    return kept
