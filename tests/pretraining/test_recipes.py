"""The shipped recipes: each runs, in small; states nothing twice; and says what the papers say."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml

from selfsight import config as layers
from selfsight.encoders.backbones import BackboneConfig
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import RunConfig, compose
from selfsight.pretraining.recipes import recipe_file, recipe_title, recipes
from selfsight.train.optim import scaled_lr
from tests.conftest import small_heads

every_recipe = pytest.mark.parametrize("name", recipes())
FROM_SCRATCH = [name for name, method in METHODS.items() if method.frozen_teacher == "no"]
# Those that start from an encoder, or learn from one, are tested in test_foundation.py.
NEEDS_AN_ENCODER = ("adapt/", "distill/", "digits/distill", "digits/dinov3")
pytestmark = pytest.mark.usefixtures("no_network")


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Twenty noisy images of ten classes, two of each, as one file without a test split."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 20, 3), np.uint8)
    np.savez(path, images=pixels, labels=np.arange(20) % 10)
    return path


def shrunk(config: RunConfig, images: Path, run: Path) -> RunConfig:
    """The recipe with a small encoder, small heads, small views and two steps on a CPU."""
    tree = config.tree()
    largest = max(group["size"] for group in tree["views"])
    for group in tree["views"]:
        group["size"] = 16 if group["size"] == largest else 8
    backbone = tree["backbone"]
    assert timm.is_model(backbone["name"])
    if "vit" in backbone["name"]:
        backbone["patch_size"] = 4
        backbone["options"] |= {"embed_dim": 24, "depth": 2, "num_heads": 2}
    else:
        backbone["options"] |= {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    tree["method"] |= small_heads(config.method.name)
    tree["data"] |= {"source": "arrays", "path": str(images)}
    tree["evaluate"]["every_epochs"] = 0
    small = {"run": str(run), "batch_size": 8, "max_steps": 2, "log_every": 1}
    here = {"device": "cpu", "precision": "fp32", "compile": False}
    return layers.validate(RunConfig, {**tree, **small, **here})


def is_of_another_data_set(name: str) -> bool:
    """Whether a recipe changes the data of another alone, and would train here as that one."""
    tree = layers.read_yaml(recipe_file(name))
    return "base" in tree and tree.keys() <= {"base", "data", "epochs"}


def is_run(name: str) -> bool:
    return not is_of_another_data_set(name) and not name.startswith(NEEDS_AN_ENCODER)


@pytest.mark.parametrize("name", [n for n in recipes() if is_run(n)])
def test_runs(name, images, tmp_path):
    config = shrunk(compose(name).config, images, tmp_path / "run")
    folder = jobs.pretrain(config, quiet=True)
    losses = [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert load_encoder(folder).description["method"]["name"] == config.method.name


# Texts --------------------------------------------------------------------------------------------


@every_recipe
def test_begins_with_a_title(name):
    first = recipe_file(name).read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# {recipe_title(name)}"
    assert len(recipe_title(name)) > 20


@every_recipe
def test_is_of_the_method_it_is_called_after(name):
    data, _, called = name.rpartition("/")
    called = called.removeprefix("up_").replace("simclr_v1", "simclr")
    called = data if data == "distill" else called  # whose recipes are called after the student
    assert compose(name).config.method.name == called


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
def test_every_method_is_there(data):
    assert {f"{data}/{name}" for name in FROM_SCRATCH} <= set(recipes())


def leaves(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of the values in a recipe, through mappings and lists of mappings."""
    items = node.items() if isinstance(node, dict) else ()
    if isinstance(node, list) and all(isinstance(item, dict) for item in node):
        items = enumerate(node)
    if not items:
        yield path
    for key, value in items:
        yield from leaves(value, (*path, key))


def without(node: Any, path: tuple) -> Any:
    """A copy in which the value at the path is missing, and a mapping that it leaves empty."""
    key, *rest = path
    if isinstance(node, list):
        return [without(v, tuple(rest)) if i == key else v for i, v in enumerate(node)]
    inner = without(node[key], tuple(rest)) if rest else {}
    kept = {k: v for k, v in node.items() if k != key}
    return {**kept, key: inner} if inner else kept


def test_leaves_and_without():
    tree = {"a": 1, "b": {"c": [2, 3]}, "d": [{"e": 4, "f": 5}]}
    assert list(leaves(tree)) == [("a",), ("b", "c"), ("d", 0, "e"), ("d", 0, "f")]
    assert without(tree, ("b", "c")) == {"a": 1, "d": [{"e": 4, "f": 5}]}
    assert without(tree, ("d", 0, "e"))["d"] == [{"f": 5}]


@every_recipe
def test_states_only_what_differs_from_what_is_below_it(name, tmp_path):
    """Without any one of its values it would be another configuration, or none."""
    tree, whole = layers.read_yaml(recipe_file(name)), compose(name, run="run").config
    path, dead = tmp_path / "less.yaml", []
    for leaf in leaves(tree):
        if leaf[-1] in ("base", "name"):
            continue
        path.write_text(yaml.safe_dump(without(tree, leaf)))
        try:
            changed = compose(str(path), run="run").config != whole
        except UserError:
            changed = True
        if not changed:
            dead.append(".".join(map(str, leaf)))
    assert not dead, f"{recipe_file(name)} repeats what holds without it"


# Facts --------------------------------------------------------------------------------------------


# peak learning rate, images of a step, epochs, as in the papers' texts or their code
PAPERS = {
    "simclr": (4.8, 4096, 100),
    "simclr_v2": (6.4, 4096, 800),
    "moco_v1": (0.03, 256, 200),
    "moco_v2": (0.03, 256, 200),
    "moco_v3": (2.4e-3, 4096, 300),
    "byol": (3.2, 4096, 1000),
    "simsiam": (0.1, 512, 100),
    "barlow_twins": (1.6, 2048, 1000),
    "nnclr": (4.8, 4096, 1000),
    "mae": (2.4e-3, 4096, 800),
    "vicreg": (1.6, 2048, 1000),
    "swav": (4.8, 4096, 800),
    "dino": (2e-3, 1024, 300),
    "dcl": (1.2, 256, 200),
    "dclw": (1.2, 256, 200),
    "supcon": (9.6, 6144, 350),
    "supervised": (0.1, 256, 90),
    "simmim": (4e-4, 2048, 800),
    "ijepa": (1e-3, 2048, 300),
    "ibot": (2e-3, 1024, 800),
    "lejepa": (5e-4, 512, 100),
    "dinov2": (4e-3 * 2**0.5, 2048, 100),
}


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_imagenet_recipes_have_the_papers_schedule(name):
    config = compose(f"imagenet/{name}").config
    lr, batch_size, epochs = PAPERS[name]
    assert scaled_lr(config.optimizer, config.batch_size) == pytest.approx(lr)
    assert (config.batch_size, config.epochs) == (batch_size, epochs)
    assert config.backbone != BackboneConfig()


# the same of United Perception's shipped files
UNITED_PERCEPTION = {
    "up_moco_v1": (0.06, 512, 200),
    "up_moco_v2": (0.06, 512, 200),
    "up_moco_v3": (1.5e-4, 1024, 300),
    "up_simclr_v1": (4.8, 4096, 100),
    "up_simclr_v2": (4.8, 4096, 100),
    "up_simsiam": (0.1, 512, 100),
    "up_mae": (2.4e-3, 4096, 400),
}


@pytest.mark.parametrize("name", UNITED_PERCEPTION)
def test_up_recipes_have_its_schedule(name):
    config = compose(f"imagenet/{name}").config
    lr, batch_size, epochs = UNITED_PERCEPTION[name]
    assert scaled_lr(config.optimizer, config.batch_size) == pytest.approx(lr)
    assert (config.batch_size, config.epochs, config.seed) == (batch_size, epochs, 131)


@pytest.mark.parametrize(
    ("name", "key", "epochs"),
    [
        ("imagenet/swav", "freeze_prototypes", 1),
        ("imagenet/dino", "temperature_warmup", 30),
        ("imagenet/dino", "freeze_last_layer", 1),
        ("imagenet/ibot", "temperature_warmup", 30),
        ("imagenet/ibot", "freeze_last_layer", 1),
        ("imagenet/dinov2", "temperature_warmup", 30),
        ("imagenet/dinov2", "freeze_last_layer", 1),
        ("imagenet100/swav", "queue_start", 50),
        ("imagenet100/swav", "freeze_prototypes", 2),
        ("imagenet100/dino", "temperature_warmup", 50),
        ("imagenet100/dino", "freeze_last_layer", 1),
    ],
)
def test_fractions_of_training_are_the_papers_epochs(name, key, epochs):
    config = compose(name).config
    assert getattr(config.method, key) * config.epochs == pytest.approx(epochs, abs=0.01)


@every_recipe
def test_views_fit_the_encoder_in_full_size(name):
    """The sizes of patches and views, which the shrunk runs replace."""
    config = compose(name).config
    if "vit" not in config.backbone.name:
        return
    patch = config.backbone.patch_size or int(config.backbone.name.split("patch")[1].split("_")[0])
    assert all(group.size % patch == 0 for group in config.views)
    unit = getattr(config.method, "mask_size", patch)
    assert unit % patch == 0
    assert max(group.size for group in config.views) % unit == 0


# Recipes of the user's own ------------------------------------------------------------------------


def test_recipes_of_ones_own_are_listed_and_based_on_each_other(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    before = recipes()
    folder = tmp_path / "recipes" / "mine"
    folder.mkdir(parents=True)
    (folder / "short.yaml").write_text("# A short one\nbase: digits/simclr\nepochs: 3\n")
    (folder / "shorter.yaml").write_text("base: mine/short\nseed: 7\n")
    assert set(recipes()) - set(before) == {"mine/short", "mine/shorter"}
    found = compose("mine/shorter")
    assert (found.config.epochs, found.config.seed) == (3, 7)
    assert found.config.run == "runs/mine-shorter"
    assert found.origins.of("epochs") == "recipe mine/short"
    listed = command("recipes", cwd=tmp_path).stdout
    assert "A short one (recipes/mine/short.yaml)" in listed
    # a folder that the variable names, in place of the one beside
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.yaml").write_text("base: mine/short\n")
    monkeypatch.setenv("SELFSIGHT_RECIPES", str(other))
    with pytest.raises(UserError, match=r"'mine/short': no such recipe or file"):
        compose("x")
    monkeypatch.setenv("SELFSIGHT_RECIPES", os.pathsep.join([str(other), "recipes"]))
    assert compose("x").config.epochs == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("digits/simclr", "epochs: 1\n", "'digits/simclr': several recipes have this name: "),
        ("a", "base: a\n", "recipes/a.yaml: base=a leads back to this file"),
        ("b", "base: other.yaml\n", "recipes/b.yaml: base=other.yaml is not a recipe"),
    ],
)
def test_a_recipe_of_ones_own_that_cannot_be_is_named(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("epochs: 1\n")
    file = tmp_path / "recipes" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(UserError) as error:
        compose(name)
    assert message in str(error.value)


def test_a_folder_of_recipes_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("SELFSIGHT_RECIPES", "/nowhere")
    with pytest.raises(UserError, match="SELFSIGHT_RECIPES=/nowhere: there is no folder"):
        recipes()
