"""The configuration of a pretraining run, composed once from layers: defaults, recipe, file,
command line; each replaces values of those before it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, field_validator, model_validator

from selfsight import config as layers
from selfsight import own
from selfsight.config import Config, Tree, added, is_inside, may_change
from selfsight.data.config import with_source
from selfsight.encoders.artifact import NAMED_BY, named
from selfsight.encoders.backbones import BackboneConfig
from selfsight.encoders.shown import Resize
from selfsight.encoders.timm_weights import PREFIX, find_timm
from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.methods.simclr import SimCLR
from selfsight.pretraining import own_parts
from selfsight.pretraining.default_views import channels_of, default_views
from selfsight.pretraining.recipes import recipe_file, recipe_name, recipes
from selfsight.train.config import NAMED, TrainConfig, with_names
from selfsight.views.recipe import PRESETS, preset

MethodChoice = Annotated[
    Union[tuple(method.Config for method in METHODS.values())],  # noqa: UP007 (made at run time)
    Field(discriminator="name"),
]


class EvaluateConfig(Config):
    """What is measured during pretraining, on training images only: the test split is not read."""

    every_epochs: int = Field(10, ge=0)  # kNN accuracy, if there are labels (0: never)
    images: int = Field(10_000, ge=10)  # the kNN accuracy uses at most this many training images
    probe: bool = True  # train a linear probe beside the method, if there are labels
    # crop: the central part of an image; squash: all of it, for long images. The encoder's
    # evaluations do the same unless they say otherwise
    resize: Resize = added("crop")


class RunConfig(TrainConfig):
    """One pretraining run.

    >>> RunConfig(views=[{"size": 32}], epochs=3).epochs
    3
    """

    # the run's folder (default: runs/<recipe>, with the fingerprint if keys are overridden)
    run: str | None = may_change(None)
    backbone: BackboneConfig = BackboneConfig()
    method: MethodChoice = SimCLR.Config()
    # the encoder starts with these weights and not at random: a run's folder, an
    # encoder.safetensors, a checkpoint of another library, or timm's: timm:NAME.TAG,
    # timm:hf-hub:ORG/NAME, timm:local-dir:FOLDER (in the form of the hub)
    weights: str | None = may_change(None)
    weights_sha256: str | None = None  # of that file; filled in when the run starts
    # another run's folder, or a checkpoint in it: continue from its whole state
    resume: str | None = may_change(None)
    # make a run longer that its folder already holds: epochs or max_steps may then be larger
    extend: bool = may_change(False)
    evaluate: EvaluateConfig = EvaluateConfig()
    # also keep best.safetensors, the encoder with the highest kNN accuracy so far
    save_best: bool = may_change(False)
    # also keep the encoder under a name such as simclr-{epoch}-{probe:.1f}
    save_as: str | None = may_change(None)
    # files of your own code that the run uses -> SHA-256; filled in when the run starts
    code: dict[str, str] = added({})

    @field_validator("save_as")
    @classmethod
    def _name(cls, template: str | None) -> str | None:
        if template is not None:
            named(template, dict.fromkeys(NAMED_BY, 1))
        return template

    @model_validator(mode="after")
    def _best(self) -> "RunConfig":
        if self.save_best and not self.evaluate.every_epochs:
            raise ValueError("save_best=true: needs kNN accuracy: set evaluate.every_epochs")
        return self


class Origins:
    """The origin of each value: the last layer that set it, or that replaced a section it is in."""

    def __init__(self) -> None:
        self._records: list[tuple[str, str]] = []

    def record(self, tree: Tree, origin: str) -> None:
        self._records += [(key, origin) for key, _ in layers.flatten(tree)]

    def forget(self, section: str) -> None:
        self._records = [(k, o) for k, o in self._records if not is_inside(k, section)]

    def is_below(self, key: str, other: str) -> bool:
        """Whether a key was set by a layer below the one that set the other key, or by none."""
        latest = {k: n for n, (k, _) in enumerate(self._records) if k in (key, other)}
        return key not in latest or (self.of(key) != self.of(other) and latest[key] < latest[other])

    def of(self, key: str) -> str:
        return next((o for k, o in reversed(self._records) if is_inside(key, k)), "default")


@dataclass(frozen=True)
class Composed:
    """A validated configuration and the origin of each of its values."""

    config: RunConfig
    origins: Origins

    def rows(self) -> list[tuple[str, Any, str]]:
        """(key, value, origin) of every value."""
        return [(k, v, self.origins.of(k)) for k, v in layers.flatten(self.config.tree())]


def compose(
    what: str | None,
    overrides: list[str] | None = None,
    run: str | None = None,
    origin: str = "command line",
) -> Composed:
    """Merge the layers and validate the whole.

    Args:
        what: a shipped recipe's name, a YAML file, or None for the defaults alone.
        overrides: 'key=value' with dotted keys.
        run: the run's folder, as key `run`.
        origin: where the overrides come from.
    Raises: UserError that lists every problem.

    >>> found = compose("digits/simclr", ["epochs=10"])
    >>> found.config.epochs, found.origins.of("epochs")
    (10, 'command line')
    """
    overrides = overrides or []
    tree: Tree = {}
    origins = Origins()
    for layer, source in _load(what):
        tree = _lay(tree, layer, source, origins)
    tree = layers.fold(tree, overrides, lambda below, above: _lay(below, above, origin, origins))
    if run is not None:
        tree = _lay(tree, {"run": run}, origin, origins)
    tree = _with_weights(tree, origins)
    if "views" not in tree:
        tree["views"], name = default_views(tree)
        origins.record({"views": []}, f"default (preset {name})")
    parts = own_parts.parts_of(tree)
    code = own_parts.code_of(parts, tree.pop("code", None))
    config = layers.validate(_class_of(tree), {**tree, "code": code} if code else tree)
    if config.run is None:
        keys = [key for key, _ in layers.flatten(layers.fold({}, overrides))]
        same = all(map(RunConfig.key_may_change, keys))
        folder = _default_run(what, "" if same else f"-{config.fingerprint()}")
        config = config.model_copy(update={"run": folder})
    _check_tag(config)
    return Composed(config, origins)


def _with_weights(tree: Tree, origins: Origins) -> Tree:
    """With timm's weights, the name of their model and its mean and std, unless the layer that
    names the weights, or a later one, sets them."""
    weights = tree.get("weights")
    if not isinstance(weights, str) or not weights.startswith(PREFIX):
        return tree
    found = find_timm(weights)
    if origins.is_below("backbone.name", "weights"):
        origins.forget("backbone")
        tree = {key: value for key, value in tree.items() if key != "backbone"}
        layer = {"backbone": {"name": found.name, "options": found.options}}
        tree = _lay(tree, layer, f"weights={weights}", origins)
    rgb = channels_of(tree) == 3
    colours = {"mean": list(found.mean), "std": list(found.std)} if rgb else {}
    free = {k: v for k, v in colours.items() if origins.is_below(f"data.{k}", "weights")}
    if free:
        origins.record({"data": free}, f"weights={weights}")
        tree = layers.merge(tree, {"data": free})
    return tree


def _class_of(tree: Tree) -> type[RunConfig]:
    """RunConfig; for a method of the user's own with the keys of that method."""
    name = tree["method"].get("name") if isinstance(tree.get("method"), dict) else None
    method = own_parts.own_method(name)
    return RunConfig if method is None else own_parts.with_method(RunConfig, name, method)


def _check_tag(config: RunConfig) -> None:
    """A new run names no pretrained weights of timm, for its encoder would not start from them. A
    run that began so before this was refused continues."""
    name, _, tag = config.backbone.name.partition(".")
    if (
        tag
        and not own.is_code(config.backbone.name)
        and not (Path(config.run) / "config.yaml").exists()
    ):
        raise UserError(
            f"backbone.name={name}.{tag}: '{tag}' names pretrained weights, and an encoder starts "
            f"at random; set weights=timm:{name}.{tag} to start from them, or leave out the tag"
        )


def _lay(tree: Tree, layer: Tree, origin: str, origins: Origins) -> Tree:
    """One layer merged into those below it. Another method drops all keys of the method below it,
    another backbone drops its options, and one of the user's own all keys of timm's."""
    layer = with_names(layer)
    origin_of_views = origin
    if isinstance(layer.get("views"), str):
        origin_of_views = f"{origin} (preset {layer['views']})"
        layer["views"] = preset(layer["views"])
    if isinstance(layer.get("data"), dict):
        layer["data"] = with_source(layer["data"])
    if _renames("method", tree, layer):
        tree = {k: v for k, v in tree.items() if k != "method"}
        origins.forget("method")
    if _renames("backbone", tree, layer):
        ours = not own_parts.is_own("backbone", layer["backbone"]["name"])
        kept = {k: v for k, v in tree["backbone"].items() if ours and k != "options"}
        tree = {**tree, "backbone": kept}
        origins.forget("backbone.options" if ours else "backbone")
    if isinstance(layer.get("views"), dict) and "views" not in tree:
        tree = {**tree, "views": default_views(layers.merge(tree, {**layer, "views": {}}))[0]}
    origins.record({k: v for k, v in layer.items() if k != "views"}, origin)
    if "views" in layer:
        views = layer["views"]
        origins.record({"views": views if isinstance(views, dict) else []}, origin_of_views)
    return layers.merge(tree, layer)


def _renames(section: str, below: Tree, above: Tree) -> bool:
    """Whether the upper layer names another method or backbone than the lower one."""
    old, new = below.get(section), above.get(section)
    if not isinstance(old, dict) or not isinstance(new, dict) or "name" not in new:
        return False
    return "name" in old and old["name"] != new["name"]


def _load(what: str | None, above: tuple[Path, ...] = ()) -> list[tuple[Tree, str]]:
    """(layer, origin) of a recipe or file, after those that it is based on."""
    if what is None:
        return []
    path = recipe_file(what)
    name = recipe_name(path)
    origin = str(path) if name is None else f"recipe {name}"
    tree = layers.read_yaml(path)
    base = tree.pop("base", None)
    if base is None:
        return [(tree, origin)]
    if not isinstance(base, str) or recipe_name(recipe_file(base)) is None:
        raise UserError(f"{path}: base={base} is not a recipe. See: selfsight recipes")
    if path in above:
        raise UserError(f"{path}: base={base} leads back to this file")
    return [*_load(base, (*above, path)), (tree, origin)]


def _default_run(what: str | None, suffix: str) -> str:
    """runs/<recipe><suffix>: the suffix tells changed configurations of one recipe apart."""
    name = "default"
    if what:
        path = recipe_file(what)
        name = (recipe_name(path) or path.stem).replace("/", "-")
    return f"runs/{name}{suffix}"


def read_run_config(folder: Path) -> RunConfig:
    """The configuration of an existing run."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{folder}' is not a run folder (no config.yaml in it)")
    tree = layers.read_yaml(path)
    method = tree.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    known = not isinstance(name, str) or name in METHODS
    kind = RunConfig if known else own_parts.with_any_keys(RunConfig, name)
    return layers.validate(kind, tree)


def json_schema() -> Tree:
    """The JSON Schema of a configuration file, with which editors check and complete keys."""
    schema = RunConfig.model_json_schema()
    properties = schema["properties"]
    groups = properties["views"]
    properties["views"] = {"anyOf": [{"type": "string", "enum": list(PRESETS)}, groups]}
    for key in NAMED:
        properties[key] = {"anyOf": [{"type": "string"}, properties[key]]}
    about = "the recipe that this one changes"
    properties["base"] = {"type": "string", "enum": recipes(), "description": about}
    schema["required"] = [key for key in schema.get("required", []) if key != "views"]
    version = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": version, **schema, "title": "Selfsight"}
