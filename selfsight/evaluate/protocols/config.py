"""The configuration of an evaluation, in layers: the encoder's run, the protocol, key=value."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfsight import config as layers
from selfsight.batch import ImageSize, sides
from selfsight.config import Config, Tree, added, may_change, near
from selfsight.data.config import DataConfig, with_source
from selfsight.data.images import SMALL
from selfsight.encoders.backbones import BackboneConfig
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError
from selfsight.evaluate.classifiers import FineTuned, LinearHeads
from selfsight.train.config import TrainConfig, with_names
from selfsight.train.precision import Precision
from selfsight.views.recipe import PRESETS, Size, ViewGroup, preset

PROTOCOLS = Path(__file__).parent / "shipped"
KINDS = {"heads": "linear-augmented", "finetuned": "finetune"}  # by the name of the method


class Labels(Config):
    """The labels that may be used; at most one of the three is given (default: all labels)."""

    fraction: float | None = Field(None, gt=0, le=1)  # of each class
    shots: int | None = Field(None, ge=1)  # of each class
    images: str | None = None  # a file that lists them, one a line

    @model_validator(mode="after")
    def _one(self) -> "Labels":
        given = [k for k in ("fraction", "shots", "images") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say which labels to use; give one")
        return self

    def which(self) -> Tree:
        """The key that is given, for results.json; {} when all labels are used."""
        keys = ("fraction", "shots", "images")
        return {k: getattr(self, k) for k in keys if getattr(self, k) is not None}


class Evaluation(Config):
    """What every protocol reads."""

    data: DataConfig = DataConfig()
    allow_overlap: bool = may_change(
        False
    )  # measure even if test images are among the training images
    untrained: bool = may_change(True)  # also measure the same network before its first step
    # also measure the encoder that a run with `weights` started from
    start: bool = may_change(True)
    # for weights that another library wrote:
    backbone: BackboneConfig | None = None
    image_size: Size | None = None  # side in pixels, or [height, width] (default: the encoder's)
    # crop: the central part of an image; squash: all of it (default: evaluate.resize of the run)
    resize: Resize | None = added(None)
    format: str | None = may_change(None)  # of the file (default: recognised by its keys)


class KnnConfig(Evaluation):
    """kNN on cached features."""

    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: Precision = "auto"
    pixels: bool = True  # also measure the raw pixels


class LinearConfig(KnnConfig, Labels):
    """Logistic regression on cached features."""


class TrainedConfig(TrainConfig, Evaluation, Labels):
    """A classifier that is trained by `fit`: on a frozen encoder, or the whole network."""

    protocol: str  # its name, stamped into the results
    method: Annotated[LinearHeads.Config | FineTuned.Config, Field(discriminator="name")]
    drop_path: float = Field(0.0, ge=0, lt=1)  # stochastic depth (arXiv 1603.09382)
    validation: float = Field(0.1, gt=0, lt=1)  # of each class, held out to choose a rate by
    weights_sha256: str | None = None  # of the evaluated encoder; filled in by the evaluation

    @model_validator(mode="after")
    def _sizes(self) -> "TrainedConfig":
        if len({group.size for group in self.views}) > 1:
            raise ValueError("views: a classifier is trained on views of one size")
        return self

    @model_validator(mode="after")
    def _layers(self) -> "TrainedConfig":
        if self.optimizer.layer_decay < 1:
            raise ValueError(
                f"optimizer.layer_decay={self.optimizer.layer_decay}: only for pretraining; a "
                f"fine-tuning has method.layer_decay"
            )
        if self.freeze_backbone and isinstance(self.method, LinearHeads.Config):
            raise ValueError(
                f"freeze_backbone={self.freeze_backbone}: this protocol freezes the encoder to the "
                f"end; leave it out"
            )
        return self

    @property
    def kind(self) -> Literal["linear-augmented", "finetune"]:
        return KINDS[self.method.name]


def compose_cached(cls: type[Config], base: Tree, overrides: list[str]) -> Any:
    """The configuration of knn or linear: the encoder's own run, then key=value."""
    return layers.validate(cls, _over(_only(base, cls), overrides))


def compose_trained(
    protocol: str, kind: str, base: Tree, image_size: ImageSize, overrides: list[str]
) -> TrainedConfig:
    """The configuration of a trained protocol.

    Args:
        protocol: a shipped protocol's name or a YAML file.
        kind: linear-augmented or finetune: what the protocol must be.
        base: keys of the encoder's own run.
    """
    tree = with_names(layers.read_yaml(protocol_file(protocol)))
    tree["protocol"] = Path(protocol).stem
    size = layers.fold({}, overrides).get("image_size") or image_size
    tree = _over(layers.merge(_only(base, TrainedConfig), tree), overrides, size)
    config = layers.validate(TrainedConfig, tree)
    if config.kind != kind:
        raise UserError(f"--protocol {protocol}: is a protocol for `selfsight {config.kind}`")
    if config.views[0].sides != sides(size):
        raise UserError(
            f"views.0.size={config.views[0].size}: the test images have image_size={size}; "
            f"make them equal"
        )
    return config


def sized(name: str, size: ImageSize) -> list[Tree]:
    """A preset at this size, in its small variant, if it has one, for small images; its crops have
    the shape of the size."""
    small, (height, width) = f"{name}-small", sides(size)
    fits = small if max(height, width) <= SMALL and small in PRESETS else name
    groups = [{**group, "size": size} for group in preset(fits)]
    if height == width:
        return groups
    usual = ViewGroup.model_fields["crop_ratio"].default
    shape = [[r * width / height for r in group.get("crop_ratio", usual)] for group in groups]
    return [{**g, "crop_ratio": ratio} for g, ratio in zip(groups, shape, strict=True)]


def protocol_file(protocol: str) -> Path:
    """The file of a shipped protocol, or the file itself."""
    shipped = PROTOCOLS / f"{protocol}.yaml"
    if shipped.is_file():
        return shipped
    if Path(protocol).is_file():
        return Path(protocol)
    names = protocols()
    raise UserError(
        f"--protocol {protocol}: no such protocol or file.{near(protocol, names)} "
        f"Known: {', '.join(names)}"
    )


def protocols() -> list[str]:
    """The names of the shipped protocols of training."""
    return sorted(p.stem for p in PROTOCOLS.glob("*.yaml"))


def title(name: str) -> str:
    """The comment on the first line of a protocol."""
    with protocol_file(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _only(base: Tree, cls: type[Config]) -> Tree:
    return {k: v for k, v in base.items() if k in cls.model_fields}


def _over(tree: Tree, overrides: list[str], size: ImageSize = 0) -> Tree:
    """The tree with overrides; the name of a preset becomes its views at this size."""

    def with_views(tree: Tree) -> Tree:
        name = tree.get("views")
        return {**tree, "views": sized(name, size)} if isinstance(name, str) else tree

    def lay(tree: Tree, layer: Tree) -> Tree:
        layer = with_names(layer)
        if isinstance(layer.get("data"), dict):
            layer = {**layer, "data": with_source(layer["data"])}
        return layers.merge(tree, with_views(layer))

    return layers.fold(with_views(tree), overrides, lay)
