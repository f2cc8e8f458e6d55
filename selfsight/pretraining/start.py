"""What the weights that an encoder starts from say of it: its model, its colours."""

from selfsight.config import Tree, merge
from selfsight.encoders.timm_weights import PREFIX, find_timm
from selfsight.pretraining.origins import Origins


def with_weights(tree: Tree, origins: Origins) -> Tree:
    """With timm's weights, the name of their model and its mean and std, unless the layer that
    names the weights, or a later one, sets them."""
    weights = tree.get("weights")
    if not isinstance(weights, str) or not weights.startswith(PREFIX):
        return tree
    found = find_timm(weights)
    if origins.is_below("backbone.name", "weights"):
        tree = _with_model(tree, {"name": found.name, "options": found.options}, origins)
    colours = {"mean": list(found.mean), "std": list(found.std)}
    free = {k: v for k, v in colours.items() if origins.is_below(f"data.{k}", "weights")}
    if free:
        origins.record({"data": free}, f"weights={weights}")
        tree = merge(tree, {"data": free})
    return tree


def _with_model(tree: Tree, model: Tree, origins: Origins) -> Tree:
    """The tree with the model of its weights. Keys of layers below are of another model and are
    dropped, except for `drop_path`, which every model has."""
    given = tree.get("backbone", {})
    own = {**given, "options": given.get("options") or {}}
    stays = lambda key: not origins.is_below(f"backbone.{key}", "weights")  # noqa: E731
    options = {k: v for k, v in own.pop("options").items() if stays(f"options.{k}")}
    kept = {key: value for key, value in own.items() if key == "drop_path" or stays(key)}
    for key in own.keys() - kept.keys():
        origins.forget(f"backbone.{key}")
    origins.record({"backbone": model}, f"weights={tree['weights']}")
    backbone = {**model, **kept, "options": {**model["options"], **options}}
    return {**tree, "backbone": backbone}
