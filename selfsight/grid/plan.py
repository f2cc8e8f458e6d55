"""A grid: data sets x methods x backbones x starts x seeds x protocols, and its list of cells."""

import json
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from selfsight import config as layers
from selfsight.config import Config, Tree, near
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import (
    KnnConfig,
    LinearConfig,
    compose_cached,
    compose_trained,
)
from selfsight.methods import METHODS
from selfsight.pretraining.build import image_size
from selfsight.pretraining.config import RunConfig, compose
from selfsight.pretraining.recipes import recipe_file, recipes
from selfsight.pretraining.weights import weights_file

GRIDS = Path(__file__).parent / "shipped"
UNTRAINED = "untrained"
# label fractions of fine-tuning that have a column in the table
PERCENT = {0.01: "1", 0.1: "10", None: "100"}
Kind = Literal["knn", "linear", "linear-augmented", "finetune"]


class DataSet(Config):
    """One block of the table."""

    recipes: str  # a folder of shipped recipes, or one recipe or file that takes every method
    keys: Tree = Field({})  # of every pretraining, dotted or nested


class Protocol(Config):
    """One measurement of every encoder."""

    kind: Kind
    protocol: str | None = None  # a trained protocol's name or file (default: named as its kind)
    keys: Tree = Field({})  # of the evaluation, dotted or nested

    def arguments(self) -> list[str]:
        return arguments(self.keys)

    def columns(self) -> dict[str, str]:
        """Metric of the result -> column of the table."""
        if self.kind == "knn":
            return {"k20": "knn", "k200": "knn200"}
        if self.kind == "finetune":
            return {"top1": f"finetune_{PERCENT[self.keys.get('fraction')]}"}
        name = {"linear": "linear", "linear-augmented": "augmented"}[self.kind]
        return {"top1": f"{name}_top1", "top5": f"{name}_top5"}


class GridConfig(Config):
    """The content of a grid file."""

    data: dict[str, DataSet] = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    backbones: dict[str, Tree] = Field(
        {"default": {}}, min_length=1
    )  # name -> keys of `backbone`; {}: the recipe's
    # name -> key `weights` of every pretraining; null: at random. {}: as the recipes say
    starts: dict[str, str | None] = Field({})
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    protocols: list[Protocol] = Field(min_length=1)
    overrides: list[str] = Field([])  # key=value of every pretraining, after all others
    jobs: int | None = Field(None, ge=1)  # cells at a time (default: one a GPU, or one a core)

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: list[str]) -> list[str]:
        for name in methods:
            if name not in METHODS:
                raise ValueError(
                    f"{name} is not a method.{near(name, METHODS)} See: selfsight methods"
                )
        return list(dict.fromkeys(methods))

    @field_validator("data", "backbones", "starts")
    @classmethod
    def _part_of_a_folder(cls, named: dict[str, Any]) -> dict[str, Any]:
        """These names become part of a cell's folder, which must stay inside the grid's folder."""
        for name in named:
            if not re.fullmatch(r"\w[\w .,+=@-]{0,63}", name):
                raise ValueError(
                    f"{name!r:.80} cannot be part of a folder name: use up to 64 letters, digits, "
                    f"spaces and . , + = @ _ -, the first a letter or a digit"
                )
        return named

    @field_validator("protocols")
    @classmethod
    def _columns(cls, protocols: list[Protocol]) -> list[Protocol]:
        taken: set[str] = set()
        for protocol in protocols:
            labels = {"shots", "images"} & protocol.keys.keys()
            share = protocol.keys.get("fraction")
            allowed = PERCENT if protocol.kind == "finetune" else (None,)
            if labels or share not in allowed:
                raise ValueError(
                    "the table has columns for all labels, and for fine-tuning with fraction 0.01 "
                    "and 0.1"
                )
            columns = set(protocol.columns().values())
            if taken & columns:
                raise ValueError(f"two protocols give the same column {min(taken & columns)}")
            taken |= columns
        return protocols


@dataclass(frozen=True)
class Job:
    """One pretraining and its evaluations.

    Attributes:
        folder: its name below cells/, different for every configuration.
        backbone: its name, and that of the start if the grid has several.
        what, keys: the recipe or file and the overrides that `compose` takes.
        start: also measure the encoder that it starts from.
    """

    data: str
    method: str
    backbone: str
    seed: int
    folder: str
    what: str
    keys: list[str]
    start: bool = False

    @property
    def title(self) -> str:
        backbone = "" if self.backbone == "default" else f" {self.backbone}"
        return f"{self.data}/{self.method}{backbone} seed {self.seed}"


def read_grid(what: str, overrides: list[str] | None = None) -> GridConfig:
    """A shipped grid by name, or a YAML file.

    Args:
        overrides: 'key=value' of every pretraining.
    Raises: UserError that lists every problem of the file.
    """
    path = GRIDS / f"{what}.yaml"
    if not path.is_file():
        path = Path(what)
    if not path.is_file():
        names = grids()
        raise UserError(
            f"'{what}': no such grid or file.{near(what, names)} Known: {', '.join(names)}"
        )
    grid = layers.validate(GridConfig, layers.read_yaml(path))
    return grid.model_copy(update={"overrides": [*grid.overrides, *(overrides or [])]})


def grids() -> list[str]:
    """The names of the shipped grids."""
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def title(name: str) -> str:
    """The comment on the first line of a shipped grid."""
    with (GRIDS / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def arguments(keys: Tree) -> list[str]:
    """Nested keys as a list of key=value."""
    return [f"{key}={json.dumps(value)}" for key, value in layers.flatten(keys)]


def plan(grid: GridConfig) -> list[Job]:
    """All cells, ordered by seed, so that a stopped grid has complete results of the first seeds;
    the untrained encoders first, since every other row is compared with them.

    Raises: UserError for a wrong key or value of any cell or protocol.
    """
    jobs = []
    for seed in grid.seeds:
        for data in grid.data:
            for backbone, start in product(grid.backbones, grid.starts or [""]):
                for method in (UNTRAINED, *grid.methods):
                    jobs.append(_job(grid, data, method, backbone, start, seed))
    return jobs


def _job(grid: GridConfig, data: str, method: str, backbone: str, start: str, seed: int) -> Job:
    described = grid.data[data]
    taught = grid.methods[0] if method == UNTRAINED else method
    what, keys = f"{described.recipes}/{taught}", []
    if what not in recipes():
        recipe_file(described.recipes)
        what, keys = described.recipes, [f"method={taught}"]
    keys += arguments(described.keys)
    keys += arguments({"backbone": grid.backbones[backbone]}) if grid.backbones[backbone] else []
    keys += [f"weights={json.dumps(grid.starts[start])}"] if start else []
    keys += [*grid.overrides, f"seed={seed}"]
    config = compose(what, keys, run="unnamed").config
    for key, weights in (("weights", config.weights), ("teacher.weights", config.teacher.weights)):
        if weights is not None and not weights_file(weights, key).exists():
            raise UserError(f"{key}={weights}: there is no such file or run")
    for protocol in grid.protocols:
        check(protocol, config)
    label = label_of(backbone, start)
    name = f"{data}-{method}-{label}-{seed}-{config.fingerprint()}"
    first = method == grid.methods[0] and config.weights is not None
    return Job(data, method, label, seed, name, what, keys, first)


def label_of(backbone: str, start: str) -> str:
    """The name of a backbone in the table, and of its start if the grid has several."""
    if not start:
        return backbone
    return start if backbone == "default" else f"{backbone} {start}"


def first_label(grid: GridConfig) -> str:
    """That of the grid's first cells."""
    return label_of(next(iter(grid.backbones)), next(iter(grid.starts), ""))


def check(protocol: Protocol, config: RunConfig) -> Any:
    """The protocol's configuration for this encoder. Raises: UserError for a wrong key or value."""
    base = {"data": config.data.tree(), "seed": config.seed}
    if protocol.kind in ("knn", "linear"):
        cls = {"knn": KnnConfig, "linear": LinearConfig}[protocol.kind]
        return compose_cached(cls, base, protocol.arguments())
    name = protocol.protocol or protocol.kind
    size = image_size(config.views)
    return compose_trained(name, protocol.kind, base, size, protocol.arguments())
