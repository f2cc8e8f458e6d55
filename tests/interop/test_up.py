"""United Perception's files: what each key becomes, what is refused, and that they run."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsight import config as layers
from selfsight import interop as dialects
from selfsight.data.sources.open import open_source
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import TrainedConfig, compose_trained
from selfsight.interop import native
from selfsight.interop.cli.converted_file import paired
from selfsight.interop.report import Converted, Fate
from selfsight.logging.log import read_metrics
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import RunConfig, compose
from selfsight.train.checkpoint import Checkpoints
from selfsight.train.optim import build_optimizer, lr_factor, scaled_lr
from selfsight.views.recipe import preset
from tests.interop.opened import composed
from tests.interop.up_files import (
    FLIP,
    NORMALIZE,
    RRC,
    Tree,
    at,
    classifier,
    pretraining,
    put,
    trainer,
    write,
)

IMAGES = "dataset.train.dataset.kwargs"


def read(tree: Tree, tmp_path: Path, *overrides: str) -> Converted:
    return dialects.convert(write(tmp_path / "file.yaml", tree), list(overrides))


def pretrain_config(tree: Tree, tmp_path: Path, *overrides: str) -> RunConfig:
    converted = read(tree, tmp_path, *overrides)
    assert converted.phase == "pretrain"
    return compose(None, native.arguments({"run": converted.run} | converted.tree)).config


def evaluation(tree: Tree, tmp_path: Path, *overrides: str) -> TrainedConfig:
    converted = read(tree, tmp_path, *overrides)
    keys = native.arguments(converted.tree)
    return compose_trained(converted.protocol, converted.phase, {}, 224, keys)


def refused(tree: Tree, tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        read(tree, tmp_path, *overrides)
    return str(error.value)


def fates(converted: Converted) -> dict[str, Fate]:
    return {entry.key: entry.fate for entry in converted.entries}


def leaves(tree: Any, prefix: str = "") -> list[str]:
    """Dotted keys of everything that holds nothing further."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(one, dict) for one in value)
        )
        found += leaves(value, f"{prefix}{key}.") if nested and value else [f"{prefix}{key}"]
    return found


# Methods ------------------------------------------------------------------------------------------


MOCO = {"dim": 64, "K": 4096, "m": 0.99, "T": 0.1, "q_plane": 2048, "k_plane": 2048}
# wrapper, kwargs, encoder -> method, backbone
METHODS = {
    "MoCo v1": (
        ("moco", MOCO | {"group_size": 8}, "resnet50"),
        {"name": "moco_v1", "output_dim": 64, "queue_size": 4096, "momentum": 0.99},
        {"name": "resnet50"},
    ),
    "MoCo v1, defaults": (
        ("moco", {}, "resnet18"),
        {"name": "moco_v1", "output_dim": 128, "queue_size": 65536, "temperature": 0.07},
        {"name": "resnet18"},
    ),
    "MoCo v2": (
        ("moco", {"mlp": True, "T": 0.2}, "resnet50"),
        {"name": "moco_v2", "hidden_dim": 2048, "temperature": 0.2, "momentum": 0.999},
        {"name": "resnet50"},
    ),
    "MoCo v3": (
        ("moco_vit", {"dim": 128, "mlp_dim": 1024, "T": 0.2, "m": 0.996}, "moco_vit_small"),
        {"name": "moco_v3", "output_dim": 128, "hidden_dim": 1024, "momentum": 0.996},
        {"name": "vit_small_patch16_224", "options": {"num_heads": 12}},
    ),
    "SimCLR v1": (
        ("simclr", {"mlp": True, "dim": 2048, "output_dim": 64}, "resnet50"),
        {"name": "simclr", "hidden_dim": 2048, "output_dim": 64, "temperature": 0.07},
        {"name": "resnet50"},
    ),
    "SimCLR v2": (
        ("simclr", {"num_mlp_layer": 3}, "resnet50"),
        {"name": "simclr_v2", "hidden_dim": 2048, "output_dim": 128, "temperature": 0.07},
        {"name": "resnet50"},
    ),
    "SimSiam": (
        ("simsiam", {"plane": 2048, "dim": 1024, "pred_dim": 256}, "resnet50"),
        {"name": "simsiam", "output_dim": 1024, "predictor_dim": 256},
        {"name": "resnet50"},
    ),
    "MAE": (
        ("MAE", {}, "mae_vit_base_patch16_dec512d8b"),
        {"name": "mae", "mask_ratio": 0.75, "norm_pix": False, "decoder_depth": 8},
        {"name": "vit_base_patch16_224"},
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name, tmp_path):
    arguments, method, backbone = METHODS[name]
    config = pretrain_config(pretraining(*arguments), tmp_path)
    assert config.method.model_dump().items() >= method.items()
    found = config.backbone.model_dump()
    assert found["name"] == backbone["name"]
    assert found["options"].items() >= backbone.get("options", {}).items()
    assert timm.is_model(found["name"])
    views = 1 if name == "MAE" else 2
    assert sum(group.count for group in config.views) == views


def test_moco_v3_and_mae_have_keys_of_their_own(tmp_path):
    tree = pretraining("moco_vit", encoder="moco_vit_small")
    assert pretrain_config(tree, tmp_path).method.freeze_patch_embed is False  # UP's default
    for model in tree["net"][0]["multi_model"]:
        model["kwargs"] = {"stop_grad_conv1": True}
    assert pretrain_config(tree, tmp_path).method.freeze_patch_embed is True
    tree = pretraining("MAE", encoder="mae_vit_base_patch16_dec512d8b")
    inner = {"mask_ratio": 0.6, "norm_pix_loss": True, "drop_path": 0.1}
    tree = put(tree, "net.0.multi_model.0.kwargs", inner)
    config = pretrain_config(tree, tmp_path)
    assert (config.method.mask_ratio, config.method.norm_pix) == (0.6, True)
    assert config.backbone.drop_path == 0.1


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_the_loss_may_hold_norm_pix_beside_its_type_and_come_first(beside, first, tmp_path):
    tree = pretraining("MAE", encoder="mae_vit_base_patch16_dec512d8b")
    loss = {"type": "mae_loss"}
    loss |= {"norm_pix_loss": True} if beside else {"kwargs": {"norm_pix_loss": True}}
    tree["net"][1]["kwargs"]["ssl_loss"] = loss
    if first:
        tree["net"].reverse()
    assert pretrain_config(tree, tmp_path).method.norm_pix is True


@pytest.mark.parametrize("name", METHODS)
def test_net_in_any_order(name, tmp_path):
    """post_process first, and in an entry its wrappers before its encoders."""
    tree = pretraining(*METHODS[name][0])
    turned = copy.deepcopy(tree)
    turned["net"].reverse()
    turned["net"][1] = dict(reversed(turned["net"][1].items()))
    assert pretrain_config(turned, tmp_path) == pretrain_config(tree, tmp_path)


@pytest.mark.parametrize(
    ("optimizer", "tau", "fate"),
    [
        ("AdamW", 0.5, Fate.WITHOUT_EFFECT),
        ("SGD", 0.3, Fate.TAKEN),
        ("SGD", 0.5, "tau=0.5: the loss is multiplied"),
    ],
)
def test_tau(optimizer, tau, fate, tmp_path):
    """Where it differs from T, it is one more factor of the rate, which AdamW does not see."""
    tree = pretraining("moco_vit", {"T": 0.3}, "moco_vit_small")
    tree["net"][1]["kwargs"]["ssl_loss"]["kwargs"] = {"tau": tau}
    tree["net"].reverse()  # T is compared wherever it stands
    tree["trainer"]["optimizer"] = {"type": optimizer, "kwargs": {"lr": 1e-4}}
    if isinstance(fate, Fate):
        assert fates(read(tree, tmp_path))["net.0.kwargs.ssl_loss.kwargs.tau"] == fate
    else:
        assert fate in refused(tree, tmp_path)


# YAML ---------------------------------------------------------------------------------------------

ANCHORED = """\
num_classes: &num_classes 10
epochs: &epochs 7
crop: &crop
  type: torch_random_resized_crop
  kwargs: &square
    size: 32
    scale: [0.2, 1]
never_used: &never_used
  type: torch_color_jitter
  kwargs: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1}
plain: &plain {frozen_layers: [], out_layers: [4]}
dataset:
  train:
    dataset:
      type: cls
      kwargs:
        meta_file: train.txt
        transformer: [*crop, {type: to_tensor}]
trainer:
  max_epoch: *epochs
  optimizer: &sgd {type: SGD, kwargs: {lr: 1e-3}}
  lr_scheduler: {type: CosineAnnealingLR, kwargs: {T_max: *epochs}}
net: &subnet
  - name: backbone
    type: ssl
    multi_model:
      - &q {name: encoder_q, type: resnet18, kwargs: {<<: *plain, out_strides: [32]}}
      - {<<: *q, name: encoder_k}
    wrappers: [{type: moco, kwargs: {dim: 16}}]
"""


def test_anchors_aliases_and_merge_keys(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(ANCHORED)
    converted = dialects.convert(path)
    assert converted.tree["epochs"] == 7
    assert converted.tree["views"][0]["size"] == 32
    assert converted.tree["optimizer"]["lr"] == 1e-3 * 256  # of one image: no_scale_lr is not said
    became = fates(converted)
    assert became["crop"] == became["plain"] == became["epochs"] == Fate.TAKEN
    assert became["never_used"] == Fate.WITHOUT_EFFECT
    assert became["net.0.multi_model.1.kwargs.out_strides"] == Fate.TAKEN  # merged twice


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runtime: {task_names: ssl\nnet: [", "line 2: not valid YAML"),
        ("net: &a\n  - *a\n", "an anchor contains its own alias"),
        ("net: [*nowhere]\n", "line 1: not valid YAML: found undefined alias"),
        ("runtime: {}\nnet: []\nnet: []\n", "line 3: not valid YAML: key 'net' is given twice"),
        ("net:\n  - type: ssl\n    ...\n", "line 3: '...': write the missing lines"),
        ("a: &a {<<: *a}\nnet: []\n", "an anchor contains its own alias"),
        ("trainer: 5\n", "trainer=5: expected keys below it"),
        ("trainer: {}\nnet: 5\n", "net=5: expected a list of mappings"),
    ],
)
def test_broken_files_are_one_line(text, says, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        dialects.convert(path)
    lines = str(error.value).splitlines()
    assert [line for line in lines if says in line and "file.yaml" in line]


PAGE_PRETRAIN = """\
net: &subnet
  - name: backbone
    type: ssl
    multi_model:
      - {name: encoder_q, type: resnet50, kwargs: {frozen_layers: []}}
      - {name: encoder_k, type: resnet50, kwargs: {frozen_layers: []}}
    wrappers:
      - type: moco
        kwargs: {dim: 128, K: 65536}
  - name: post_process
    type: base_ssl_postprocess
    kwargs:
      ssl_loss:
        type: moco_loss
"""
PAGE_FINETUNE = """\
dataset:
  type: cls
  kwargs:
    meta_file:
    image_reader:
    transformer:
    fraction: 0.1
saver:
  save_dir: linear/checkpoints
  results_dir: linear/results
  auto_resume: True
  pretrain_model: moco/checkpoints/ckpt.pth
"""


def test_the_pages_abridged_snippets(tmp_path):
    """Without their dots; what they leave out comes as keys."""
    path = tmp_path / "file.yaml"
    path.write_text(PAGE_PRETRAIN)
    assert dialects.recognise(path) == "up"
    converted = dialects.convert(path)
    config = layers.validate(RunConfig, converted.tree | {"views": preset("moco_v1")})
    assert (config.method.name, config.backbone.name) == ("moco_v1", "resnet50")
    path.write_text(PAGE_FINETUNE)
    converted = dialects.convert(path, ["data.path=images", "backbone.name=resnet50"])
    assert (converted.phase, converted.subject) == ("finetune", "moco/checkpoints/ckpt.pth")
    assert converted.run == "linear/checkpoints"
    assert converted.tree["fraction"] == 0.1
    keys = native.arguments(converted.tree)
    assert compose_trained("finetune", "finetune", {}, 224, keys).data.path == "images"


def test_what_is_recognised(tmp_path):
    for text, expected in (
        ("base: digits/simclr\n", None),
        ("method: {name: simclr}\ntrainer: {}\n", None),  # a native file with a wrong key
        ("batch_size: &b 64\ntrainer: {}\nnet: []\n", "up"),
        ("runtime: {task_names: ssl}\n", "up"),
    ):
        path = tmp_path / "file.yaml"
        path.write_text(text)
        assert dialects.recognise(path) == expected, text


# Every key ----------------------------------------------------------------------------------------


def everything() -> dict[str, Tree]:
    """Files that hold every key of the language, together."""
    moco = pretraining("moco", {"mlp": False, **MOCO})
    moco["runtime"] |= {
        "random_seed": 5,
        "fp16": {"keep_batchnorm_fp32": True, "scale_factor": "dynamic"},
        "rank_init": True,
        "device": "cuda",
        "aligned": False,
        "async_norm": False,
        "special_bn_init": False,
        "iter_base": False,
        "model_helper": {"type": "base", "kwargs": {}},
        "runner": {"type": "base"},
    }
    moco["hooks"] += [
        {"type": "train_val_logger", "kwargs": {"freq": 20, "logdir": "log", "skip_first_k": 1}},
        {"type": "grad_clipper", "kwargs": {"mode": "pre_defined", "max_norm": 3, "norm_type": 2}},
        {"type": "auto_checkpoint"},
        {"type": "memory_checkpoint", "kwargs": {"enable": True}},
    ]
    moco["ema"] = {"enable": False, "kwargs": {"decay": 0.999}}
    moco["trainer"]["only_save_latest"] = False
    moco["dataset"]["train"]["dataset"]["kwargs"] |= {"fraction": 1, "image_type": "pil"}
    moco["dataset"]["test"] = moco["dataset"]["train"]
    linear = classifier(True)
    linear["dataset"]["train"]["dataset"]["kwargs"]["transformer"] += [
        {"type": "torch_color_jitter", "kwargs": {"brightness": 0.2, "hue": 0.1}},
        {"type": "torch_gaussian_blur", "kwargs": {"sigma": [0.1, 2.0]}},
        {"type": "torch_solarize"},
    ]
    tuned = classifier(False, "vit_base_patch16_224", {"cls_type": "avg_pool"})
    tuned["dataset"]["train"]["dataset"]["kwargs"]["transformer"] += [
        {
            "type": "torch_random_augmentationIncre",
            "kwargs": {"n": 2, "m": 9, "magnitude_std": 0.5},
        },
        {"type": "torch_randerase", "kwargs": {"probability": 0.25}},
    ]
    mixing = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.4, "num_classes": 1000}
    loader = tuned["dataset"]["train"]["dataloader"]["kwargs"]
    loader["batch_fn"] = {"type": "batch_cutmixup", "kwargs": mixing}
    bias = {"type": "bias", "kwargs": {"weight_decay": 0.0}}
    tuned["trainer"]["optimizer"] = {
        "type": "AdamW",
        "kwargs": {"lr": 2e-3, "weight_decay": 0.05, "betas": [0.9, 0.95]},
        "pconfig": {
            "nodecay": ["ndim_is1", ".bias"],
            "layer_decay": {"type": "vit_base", "value": 0.65, "base_lr": 2e-3},
            "ln_b": bias,
            "ln_w": {"type": "weight", "kwargs": {"weight_decay": 0}},
            "linear_b": bias,
        },
    }
    mae_linear = classifier(True, "vit_base_patch16_224", {"cls_type": "token", "bn": True})
    at(mae_linear, "net.1.kwargs")["last_norm"] = False
    return {"moco": moco, "linear": linear, "finetune": tuned, "mae linear": mae_linear}


@pytest.mark.parametrize("name", everything())
def test_every_key_has_one_entry(name, tmp_path):
    tree = everything()[name]
    keys = [entry.key for entry in read(tree, tmp_path).entries]
    assert len(keys) == len(set(keys))
    told = [leaf for leaf in leaves(tree) if not any(f"{leaf}.".startswith(f"{k}.") for k in keys)]
    assert not told


@pytest.mark.parametrize("name", ["moco", "finetune"])
def test_a_misspelt_key_anywhere_is_an_error_that_names_the_right_one(name, tmp_path):
    """Each key of the file gets a letter too many, a sixth of them at a time."""
    tree = everything()[name]
    unread = (".fp16.", "ema.kwargs", "dataset.test" if name == "moco" else "test.dataloader")
    keys = [leaf for leaf in leaves(tree) if not any(part in leaf for part in unread)]
    # without its name or type nothing of an entry is read
    keys = [leaf for leaf in keys if leaf.rpartition(".")[2] not in ("name", "type")]
    for part in range(6):
        wrong = copy.deepcopy(tree)
        for leaf in keys[part::6]:
            parent, _, key = leaf.rpartition(".")
            node = at(wrong, parent) if parent else wrong
            node[f"{key}x"] = node.pop(key)
        said = refused(wrong, tmp_path).splitlines()
        for leaf in keys[part::6]:
            (line,) = (one for one in said if f": unknown key '{leaf}x'." in one)
            assert "Did you mean" in line or "Known here" in line
            assert "file.yaml:" in line


# Data and views -----------------------------------------------------------------------------------


def test_lists_of_two_kinds_and_two_folders(tmp_path):
    """`file label` and JSON lines; the test images lie in a folder of their own."""
    for folder, shade in (("train", 10), ("val", 200)):
        (tmp_path / folder).mkdir()
        for name in ("a b.png", "c.png"):
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / folder / name)
    lists = {"train.txt": "a b.png 0\nc.png 1\n"}
    lists["val.txt"] = '{"filename": "a b.png", "label": 0}\n{"filename": "c.png", "label": 1}\n'
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    tree = classifier(True)
    for split, meta in (("train", "imagenet"), ("test", "custom_cls")):
        kwargs = at(tree, f"dataset.{split}.dataset.kwargs")
        folder = "train" if split == "train" else "val"
        kwargs |= {"meta_file": [str(tmp_path / f"{folder}.txt")], "meta_type": [meta]}
        kwargs["image_reader"]["kwargs"]["image_dir"] = str(tmp_path / folder)
    data = evaluation(tree, tmp_path).data
    for split, shade in (("train", 10), ("test", 200)):
        source = open_source(data, split)
        assert source.labels.tolist() == [0, 1]
        file = tmp_path / "read.png"
        file.write_bytes(source.read(0))
        assert Image.open(file).getpixel((0, 0)) == (shade, 0, 0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torch_mocov1", preset("moco_v1")),
        ("torch_mocov2", preset("moco_v2")),
        ("torch_mocov3", [g | {"crop_scale": (0.2, 1.0)} for g in preset("byol")]),
        ("torch_simclrv1", [preset("simclr")[0] | {"blur": 1.0}]),
    ],
)
def test_whole_recipes_of_views(kind, expected, tmp_path):
    tree = pretraining()
    at(tree, "dataset.train.dataset.kwargs")["transformer"] = [{"type": kind}]
    whole = compose(None, [f"views={yaml.safe_dump(plain(expected), default_flow_style=True)}"])
    assert pretrain_config(tree, tmp_path).views == whole.config.views


def plain(groups: list[Tree]) -> list[Tree]:
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in g.items()} for g in groups]


STEPS = [
    (RRC, {"size": 224, "crop_scale": (0.2, 1.0)}),
    ({"type": "torch_random_resized_crop", "kwargs": {"size": 96}}, {"size": 96}),
    ({"type": "torch_random_horizontal_flip"}, {"flip": 0.5}),
    ({"type": "torch_random_horizontal_flip", "kwargs": {"p": 0.3}}, {"flip": 0.3}),
    (
        {"type": "torch_color_jitter", "kwargs": {"brightness": 0.2, "contrast": 0.3, "hue": 0.1}},
        {"jitter": 1.0, "brightness": 0.2, "contrast": 0.3, "saturation": 0.0, "hue": 0.1},
    ),
    ({"type": "torch_center_crop", "kwargs": {"size": 64}}, {"size": 64, "crop_scale": (1.0, 1.0)}),
    ({"type": "torch_resize", "kwargs": {"size": 64}}, {"size": 64, "crop_ratio": (1.0, 1.0)}),
    (
        {"type": "torch_gaussian_blur", "kwargs": {"sigma": [0.2, 1.0]}},
        {"blur": 1.0, "blur_sigma": (0.2, 1.0)},
    ),
    (
        {"type": "torch_solarize", "kwargs": {"threshold": 64}},
        {"solarize": 1.0, "solarize_threshold": 0.25},
    ),
    (
        {"type": "torch_random_augmentationIncre", "kwargs": {"n": 3, "m": 7}},
        {"rand_augment": 3, "rand_magnitude": 7.0, "rand_magnitude_std": 0.0},
    ),
    (
        {"type": "torch_randerase", "kwargs": {"probability": 0.25, "max_area": 0.2}},
        {"erase": 0.25, "erase_area": (0.02, 0.2)},
    ),
]


@pytest.mark.parametrize(("step", "expected"), STEPS)
def test_each_transform(step, expected, tmp_path):
    tree = pretraining("MAE", encoder="mae_vit_base_patch16_dec512d8b")
    at(tree, "dataset.train.dataset.kwargs")["transformer"] = [step]
    config = pretrain_config(tree, tmp_path)
    assert config.views[0].model_dump().items() >= expected.items()
    assert config.data.mean == (0, 0, 0)  # no normalize is given: pixels in [0, 1]
    at(tree, "dataset.train.dataset.kwargs")["transformer"] = [step, NORMALIZE]
    assert pretrain_config(tree, tmp_path).data.mean == (0.5, 0.4, 0.3)


def test_the_report_names_the_views_keys_in_full(tmp_path):
    tree = put(pretraining("simsiam"), f"{IMAGES}.transformer", [RRC])
    by = {entry.key: entry.by for entry in read(tree, tmp_path).entries}
    assert by[f"{IMAGES}.transformer.0.kwargs.scale"] == "views.0.crop_scale=[0.2, 1.0]"


def test_views_without_a_size(tmp_path):
    tree = classifier(False)
    for split, steps in (("train", [FLIP]), ("test", [])):
        tree["dataset"][split]["dataset"]["kwargs"]["transformer"] = steps
    assert evaluation(tree, tmp_path).views[0].size == 224


def test_single_steps_make_two_views_where_the_method_compares_two(tmp_path):
    tree = pretraining()
    at(tree, "dataset.train.dataset.kwargs")["transformer"] = [RRC]
    assert pretrain_config(tree, tmp_path).views[0].count == 2


def test_the_batch_is_that_of_each_process(tmp_path, monkeypatch):
    assert pretrain_config(pretraining(), tmp_path).batch_size == 64
    assert pretrain_config(pretraining(), tmp_path).sync_batchnorm is False
    monkeypatch.setenv("WORLD_SIZE", "8")
    config = pretrain_config(pretraining(), tmp_path)
    assert config.sync_batchnorm is True  # in place of MoCo's shuffling between processes
    assert pretrain_config(pretraining(), tmp_path, "device=cpu").sync_batchnorm is False
    assert pretrain_config(pretraining("simclr"), tmp_path).sync_batchnorm is False
    assert config.batch_size == 512
    assert scaled_lr(config.optimizer, config.batch_size) == 0.06  # no_scale_lr: absolute


@settings(max_examples=15)
@given(st.floats(1e-6, 1), st.integers(1, 512), st.integers(1, 64))
def test_the_rate_of_one_image_times_all_images_of_a_step(lr, batch, processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(processes))
        tree = pretraining()
        del tree["trainer"]["lr_scheduler"]["warmup_register_type"]
        tree["trainer"]["optimizer"]["kwargs"]["lr"] = lr
        at(tree, "dataset.train.batch_sampler.kwargs")["batch_size"] = batch + 1
        converted = convert_text(yaml.safe_dump(tree))
        config = compose(None, native.arguments(converted.tree)).config
    expected = lr * (batch + 1) * processes
    assert scaled_lr(config.optimizer, config.batch_size) == pytest.approx(expected, rel=1e-5)


def convert_text(text: str) -> Converted:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_text(text)
        return dialects.convert(path)


# Optimizer and schedule ---------------------------------------------------------------------------


OPTIMIZERS = [
    ({"type": "SGD", "kwargs": {"lr": 0.1, "nesterov": True, "momentum": 0.8}}, "sgd", 0.0),
    ({"type": "LARS", "kwargs": {"lr": 4.8, "weight_decay": 1e-4}}, "lars", 1e-4),
    ({"type": "LAMB", "kwargs": {"lr": 0.01, "weight_decay": 0.02}}, "lamb", 0.02),
    ({"type": "AdamW", "kwargs": {"lr": 1e-3, "betas": [0.9, 0.95]}}, "adamw", 0.01),
]


@pytest.mark.parametrize(("optimizer", "name", "decay"), OPTIMIZERS)
def test_optimizers(optimizer, name, decay, tmp_path):
    """What the file leaves out has UP's default, not ours."""
    config = pretrain_config(put(pretraining(), "trainer.optimizer", optimizer), tmp_path).optimizer
    assert (config.name, config.lr, config.weight_decay) == (name, optimizer["kwargs"]["lr"], decay)
    assert config.momentum == optimizer["kwargs"].get("momentum", 0.9)
    assert config.betas == tuple(optimizer["kwargs"].get("betas", (0.9, 0.999)))


def test_lars_moves_tensors_that_start_at_zero(tmp_path):
    optimizer = {"type": "LARS", "kwargs": {"lr": 1.0, "weight_decay": 0.0}}
    config = pretrain_config(put(pretraining(), "trainer.optimizer", optimizer), tmp_path)
    layer = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.zeros_(layer.weight)
    layer(torch.ones(2, 4)).sum().backward()
    build_optimizer(layer, config.optimizer, config.optimizer.lr).step()
    assert layer.weight.abs().min() > 0


SIMSIAM = {"type": "SimSiamScheduler", "kwargs": {"T_max": 100}}
# scheduler -> rates as fractions of lr (0.06), at parts of 100 epochs
SCHEDULES = {
    "steps": (
        {"type": "MultiStepLR", "kwargs": {"milestones": [60, 80], "gamma": 0.2}},
        {0.59: 1, 0.61: 0.2, 0.81: 0.04},
    ),
    "no steps": ({"type": "MultiStepLR", "kwargs": {"milestones": []}}, {0.01: 1, 0.99: 1}),
    "step": (
        {"type": "StepLR", "kwargs": {"step_size": 40}},
        {0.39: 1, 0.41: 0.1, 0.79: 0.1, 0.81: 0.01},
    ),
    "cosine": (
        {"type": "CosineAnnealingLR", "kwargs": {"T_max": 100, "eta_min": 0.006}},
        {0: 1, 0.5: 0.55, 1: 0.1},
    ),
    "a cosine that is cut off": (
        {"type": "CosineAnnealingLR", "kwargs": {"T_max": 200}},
        {0: 1, 1: 0.5},
    ),
    "a cosine that ends early": (
        {"type": "CosineAnnealingLR", "kwargs": {"T_max": 50}},
        {0.25: 0.5, 0.5: 0, 0.9: 0},
    ),
    "cosine with epochs": (
        {"type": "CosineLREpochScheduler", "kwargs": {"T_max": 100, "warm_epoch": 20}},
        {0.1: 0.5, 0.2: 1, 0.6: 0.5, 1: 0},
    ),
    "polynomial": (
        {"type": "polylr", "kwargs": {"power": 2, "min_lr": 0.006, "max_epoch": 100}},
        {0: 1, 0.5: 0.1 + 0.9 / 4, 1: 0.1},
    ),
    "warm-up in iterations": (
        {"type": "MultiStepLR", "kwargs": {"milestones": [90]}, "warmup_iter": 200},
        {0.1: 0.5, 0.2: 1, 0.8: 1},
    ),
    "warm-up in epochs": (
        {
            "type": "CosineAnnealingLR",
            "kwargs": {"T_max": 100, "warmup_iter": 0},
            "warmup_epochs": 20,
        },
        {0.1: 0.5, 0.2: 1, 0.6: 0.5},
    ),
    "the longer warm-up": (
        {
            "type": "MultiStepLR",
            "kwargs": {"milestones": [90]},
            "warmup_iter": 200,
            "warmup_epochs": 5,
        },
        {0.1: 0.5, 0.2: 1},
    ),
    "exponential": (
        {"type": "MultiStepLR", "kwargs": {"milestones": [90]}}
        | {"warmup_epochs": 20, "warmup_type": "exp", "warmup_ratio": 0.01},
        {0: 0.01, 0.1: 0.1, 0.2: 1},
    ),
    "cosine warm-up": (
        {"type": "MultiStepLR", "kwargs": {"milestones": [90]}}
        | {"warmup_epochs": 20, "warmup_type": "cosine", "warmup_ratio": 0.2},
        {0: 0.2, 0.1: 0.6, 0.2: 1},
    ),
    "ratio": (
        {"type": "MultiStepLR", "kwargs": {"milestones": [90]}, "warmup_epochs": 20}
        | {"warmup_ratio": 0.5},
        {0: 0.5, 0.1: 0.75, 0.2: 1},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, tmp_path):
    """100 epochs of 10 steps, so 200 iterations are 20 epochs."""
    scheduler, expected = SCHEDULES[name]
    config = pretrain_config(pretraining() | {"trainer": trainer(100, scheduler)}, tmp_path)
    assert scaled_lr(config.optimizer, config.batch_size) == 0.06
    for progress, factor in expected.items():
        found = lr_factor(config.schedule, progress, 100, 1000)
        assert found == pytest.approx(factor, abs=1e-9), progress
    rates = [lr_factor(config.schedule, (s + 0.5) / 1000, 100, 1000) for s in range(10)]
    assert min(rates) > 0  # the first epoch trains
    if config.schedule.name != "step":
        fine = [lr_factor(config.schedule, s / 5000, 100, 1000) for s in range(5001)]
        assert max(abs(a - b) for a, b in itertools.pairwise(fine)) < 0.01


def test_one_cycle(tmp_path):
    """Up by half a cosine in 30 % of the time from max_lr / 25, then down to 1e-4 of that."""
    kwargs = {"max_lr": 0.4, "max_epoch": 100, "pct_start": 0.3, "base_momentum": 0.8}
    tree = pretraining() | {"trainer": trainer(100, {"type": "OneCycleLR", "kwargs": kwargs})}
    config = pretrain_config(tree, tmp_path)
    assert config.optimizer.lr == 0.4
    for progress, factor in {0: 0.04, 0.15: 0.52, 0.3: 1, 0.65: 0.500002, 1: 4e-6}.items():
        assert lr_factor(config.schedule, progress, 100) == pytest.approx(factor)
    assert config.schedule.momentum_cycle == (0.8, 0.95)
    tree["trainer"]["lr_scheduler"]["kwargs"]["cycle_momentum"] = False
    assert pretrain_config(tree, tmp_path).schedule.momentum_cycle is None
    tree["trainer"]["max_iter"] = 20  # of a cycle of 100 epochs
    assert pretrain_config(tree, tmp_path).schedule.decay_epochs == 100
    del tree["trainer"]["lr_scheduler"]["kwargs"]["max_epoch"]
    assert "max_epoch: the cycle takes all epochs" in refused(tree, tmp_path)


def test_a_warmup_of_one_images_rate_begins_at_it(tmp_path):
    """Without ratio the warm-up goes from lr to lr times the batch, there as here."""
    scheduler = {"type": "MultiStepLR", "kwargs": {"milestones": [90]}, "warmup_epochs": 10}
    tree = pretraining() | {"trainer": trainer(100, scheduler)}
    for key in ("warmup_ratio", "warmup_register_type", "warmup_type"):
        del tree["trainer"]["lr_scheduler"][key]
    config = pretrain_config(tree, tmp_path)
    peak = scaled_lr(config.optimizer, config.batch_size)
    assert peak == pytest.approx(0.06 * 64)
    assert peak * lr_factor(config.schedule, 0, 100) == pytest.approx(0.06)
    tree = put(tree, "dataset.train.batch_sampler.kwargs.batch_size", 0)
    with pytest.raises(UserError, match="batch_size=0"):
        pretrain_config(tree, tmp_path)


def test_simsiams_scheduler_and_group(tmp_path):
    tree = pretraining("simsiam") | {"trainer": trainer(100, SIMSIAM)}
    tree["trainer"]["optimizer"]["special_param_group"] = [{"key": "predictor"}]
    assert pretrain_config(tree, tmp_path).schedule.name == "cosine"
    other = pretraining("moco") | {"trainer": trainer(100, SIMSIAM)}
    assert "SimSiam's constant predictor" in refused(other, tmp_path)
    tree["trainer"]["optimizer"]["special_param_group"][0]["lr"] = 0.1
    assert "special_param_group.0.lr=0.1: cannot be set for one group" in refused(tree, tmp_path)


def test_layer_decay_and_what_finetuning_adds(tmp_path):
    config = evaluation(everything()["finetune"], tmp_path)
    assert (config.method.layer_decay, config.method.label_smoothing) == (0.65, 0.1)
    mixing = (config.method.mixup, config.method.cutmix, config.method.switch_probability)
    assert mixing == (0.8, 1.0, 0.4)
    assert (config.drop_path, config.optimizer.betas) == (0.1, (0.9, 0.95))
    group = config.views[0]
    assert (group.rand_augment, group.rand_magnitude, group.rand_magnitude_std) == (2, 9, 0.5)
    assert (group.erase, config.image_size) == (0.25, 224)
    assert config.backbone.options["global_pool"] == "avg"


def test_an_evaluation_has_nothing_of_the_protocol_that_the_file_does_not_say(tmp_path):
    """The protocols are fine-tuning's and MoCo's: steps, decay by layers, smoothing."""
    tree = put(classifier(False), "net.2.kwargs.cls_loss", {"type": "ce"})
    config = evaluation(tree, tmp_path)
    assert (config.method.layer_decay, config.method.label_smoothing, config.drop_path) == (1, 0, 0)
    assert (config.schedule.warmup_epochs, config.optimizer.name) == (0, "sgd")
    linear = evaluation(classifier(True), tmp_path)
    assert linear.schedule.name == "cosine"
    assert (linear.method.name, linear.method.label_smoothing) == ("heads", 0.1)
    bn = evaluation(everything()["mae linear"], tmp_path)
    assert (bn.method.batch_norm, bn.backbone.options["global_pool"]) == (True, "token")


# Length, saving, hooks ----------------------------------------------------------------------------


def test_length_and_saving(tmp_path):
    tree = pretraining()
    config = pretrain_config(tree, tmp_path)
    assert (config.epochs, config.seed, config.run) == (100, 131, "out/ck")
    assert (config.checkpoint.every_epochs, config.checkpoint.keep) == (1, 1)  # the latest only
    tree["trainer"]["only_save_latest"] = False
    config = pretrain_config(tree, tmp_path)
    assert (config.checkpoint.every_epochs, config.checkpoint.keep) == (5, 21)  # all of them
    tree["trainer"]["max_iter"] = 1000
    config = pretrain_config(tree, tmp_path)
    assert (config.max_steps, config.checkpoint.keep) == (1000, 201)  # an epoch is a step at least


def test_hooks_and_runtime(tmp_path):
    config = pretrain_config(everything()["moco"], tmp_path)
    assert (config.clip_gradient, config.log_every) == (3, 20)
    assert (config.seed, config.device) == (5, "cuda")
    tree = put(pretraining(), "runtime.fp16", False)
    assert pretrain_config(tree, tmp_path).precision == "fp32"


def test_precedence_of_the_saver(tmp_path, monkeypatch):
    """auto_resume > overrides > resume_model > pretrain_model."""
    begun = put(pretraining(), "saver.pretrain_model", "a.pth")
    assert read(begun, tmp_path).tree["weights"] == "a.pth"
    assert read(begun, tmp_path, "saver.pretrain_model=b.pth").tree["weights"] == "b.pth"
    assert "weights" not in read(begun, tmp_path, "saver.resume_model=out/ck/ckpt.pth").tree
    other = read(begun, tmp_path, "saver.resume_model=other/ckpt.pth").tree
    assert (other["resume"], "weights" in other) == ("other/ckpt.pth", False)
    monkeypatch.chdir(tmp_path)
    tree = classifier(True)
    assert read(tree, tmp_path).subject == "ckpt.pth"
    assert read(tree, tmp_path, "saver.pretrain_model=b.pth").subject == "b.pth"
    tree["saver"]["resume_model"] = "elsewhere.pth"
    assert "resume_model=elsewhere.pth: an evaluation continues in its own" in refused(
        tree, tmp_path
    )
    tree["saver"]["resume_model"] = "out/linear/ckpt_e3.pth"
    became = fates(read(tree, tmp_path))
    assert became["saver.resume_model"] == Fate.REPLACED
    (tmp_path / "out/linear/evaluations/x/checkpoints").mkdir(parents=True)
    (tmp_path / "out/linear/evaluations/x/checkpoints/step-1.pt").touch()
    tree["saver"]["resume_model"] = "elsewhere.pth"
    became = fates(read(tree, tmp_path))
    assert became["saver.resume_model"] == Fate.WITHOUT_EFFECT
    assert became["saver.auto_resume"] == Fate.TAKEN
    tree["saver"]["auto_resume"] = False
    assert "auto_resume=False: save_dir=out/linear holds" in refused(tree, tmp_path)


def test_opts_reach_everything(tmp_path):
    """UP's own form, which the commands turn into key=value, and its way into hooks."""
    tree = pretraining()
    opts = ["trainer.max_epoch", "3", "net.0.wrappers.0.kwargs.T=0.3", "trainer.test_freq", "9"]
    config = pretrain_config(tree, tmp_path, *paired(opts, True))
    assert (config.epochs, config.method.temperature) == (3, 0.3)
    hook = ["hooks.grad_clipper-kwargs.mode=pre_defined", "hooks.grad_clipper-kwargs.max_norm", "2"]
    assert pretrain_config(tree, tmp_path, *paired(hook, True)).clip_gradient == 2
    with pytest.raises(UserError, match=r"--opts trainer\.max_epoch: has no value"):
        paired(["trainer.max_epoch"], True)
    with pytest.raises(UserError, match=r"trainer\.max_epoch"):
        read(tree, tmp_path, "trainer.max_epoch")
    assert "unknown key 'trainer.max_epochs'" in refused(tree, tmp_path, "trainer.max_epochs=3")
    assert pretrain_config(pretraining("simclr"), tmp_path).method.temperature == 0.07
    ours = ["device=cpu", "batch_size=32", "data.path=images", "run=there"]
    ours.append("method.temperature=0.2")  # of SimCLR UP has no key
    config = pretrain_config(tree, tmp_path, *ours)
    assert (config.device, config.batch_size, config.run) == ("cpu", 32, "there")
    assert config.method.temperature == 0.2
    assert (config.data.source, config.data.path) == ("auto", "images")


# Refused ------------------------------------------------------------------------------------------


REFUSED = [
    ("moco", "ema", {"enable": True}, "ema.enable=True: weights are not averaged"),
    ("moco", "hooks", [{"type": "auto_save_bets"}], "Did you mean 'auto_save_best'"),
    (
        "moco",
        "hooks",
        [{"type": "grad_clipper", "kwargs": {"mode": "average", "max_norm": 1}}],
        "must be pre_defined, or be removed",
    ),
    ("moco", "runtime.iter_base", True, "runtime.iter_base=True: must be false, or be removed"),
    ("moco", "runtime.task_names", "det", "only ssl"),
    ("moco", "trainer.optimizer.type", "Adagrad", "no such optimizer. Known: SGD"),
    ("moco", "hooks", [{"kwargs": {"max_norm": 1}}], "hooks.0.type: missing; name the hook"),
    ("moco", "trainer.max_iter", 2.5, "max_iter=2.5: expected a whole number"),
    ("moco", "trainer.optimizer.type", None, "missing; name the optimizer: SGD"),
    ("moco", "trainer.optimizer.kwargs.lr", None, "missing; write the learning rate"),
    ("moco", "trainer.optimizer.kwargs.lr", "high", "lr=high: expected a number"),
    ("moco", "trainer.lr_scheduler", {"type": "OneCycleLR"}, "max_lr: missing; write the highest"),
    ("moco", "trainer.lr_scheduler.type", "CosineAnealingLR", "'CosineAnnealingLR'"),
    ("moco", "net.0.wrappers.0.type", "mocco", "Did you mean 'moco'"),
    ("moco", "net.0.multi_model.1.type", "resnet18", "is a slow copy of the first"),
    ("moco", "net.0.multi_model.0.type", "resnet55", "no such encoder. Did you mean 'resnet50'"),
    ("moco", "net.0.type", "ssll", "Did you mean 'ssl'"),
    ("moco", "net.0.multi_model.0.name", "encoder", "Did you mean 'encoder_q'"),
    ("moco", "net.0.multi_model.0.kwargs.out_layers", [3], "must be [4], or be removed"),
    ("moco", "net.0.wrappers.0.kwargs.K", math.inf, "K=inf: expected a whole number"),
    ("moco", "net.1.kwargs.ssl_loss.type", "simsiam_loss", "no such loss of moco"),
    ("moco", f"{IMAGES}.meta_file", ["a.txt", 1], "a list of strings"),
    ("moco", f"{IMAGES}.meta_type", ["moco_imagenet", "moco"], "no such type"),
    ("moco", f"{IMAGES}.image_reader.type", "ceph_opencv", "on disk"),
    ("moco", f"{IMAGES}.image_reader.kwargs.color_mode", "BGR", "RGB"),
    ("moco", f"{IMAGES}.transformer.0.type", "torch_mocov4", "torch_mocov3"),
    (
        "moco",
        f"{IMAGES}.transformer",
        [{"type": "torch_mocov1"}, FLIP],
        "makes the views by itself",
    ),
    (
        "moco",
        f"{IMAGES}.transformer",
        [FLIP, FLIP],
        "flip: is given twice",
    ),
    ("moco", f"{IMAGES}.transformer", [{"kwargs": {"size": 8}}], "name the transform"),
    ("linear", "net.0.kwargs.freeze_patterns", ["backbone.layer1"], "write [backbone]"),
    ("linear", "net.0.kwargs.freeze_patterns", ["backbone", "head"], "write [backbone]"),
    ("linear", "net.2.type", "bas_cls_head", "Did you mean 'base_cls_head'"),
    ("linear", "net.2.kwargs.dropout", 0.5, "no dropout"),
    ("linear", "saver.pretrain_model", None, "UP measured a random encoder"),
    (
        "linear",
        "dataset.test.dataset.kwargs.evaluator.kwargs.topk",
        [1, 3],
        "must be [1, 5] or [5, 1]",
    ),
    ("finetune", "trainer.optimizer.kwargs.eps", 1e-6, "must be 1e-08, or be removed"),
    ("finetune", "trainer.optimizer.pconfig.nodecay", ["gamma"], "no weight decay"),
    ("finetune", "net.1.kwargs.bn", True, "no batch norm"),
]


@pytest.mark.parametrize(("name", "key", "value", "says"), REFUSED)
def test_refused_with_file_line_key_and_remedy(name, key, value, says, tmp_path):
    said = refused(put(everything()[name], key, value), tmp_path)
    assert says in said
    assert said.splitlines()[0].startswith(str(tmp_path / "file.yaml"))
    assert len(said.splitlines()) == 1 or "multi_model" in key, "of which there are two"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("net.0.wrappers.0.kwargs.T", -1),
        ("trainer.optimizer.kwargs.momentum", 1.5),
        ("trainer.lr_scheduler.warmup_epochs", -5),
        (f"{IMAGES}.transformer.0.kwargs.scale", [1, 0.2]),
        (f"{IMAGES}.transformer.1.kwargs.threshold", 300),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_files_key(key, value, tmp_path):
    steps = [copy.deepcopy(RRC), {"type": "torch_solarize", "kwargs": {}}]
    tree = put(put(pretraining(), f"{IMAGES}.transformer", steps), key, value)
    with pytest.raises(UserError) as error:
        composed(str(write(tmp_path / "file.yaml", tree)), [])
    (line,) = str(error.value).splitlines()
    assert "file.yaml:" in line
    assert f" {key}={value}: " in line


def nodes(tree: Any, prefix: str = "") -> list[str]:
    """Dotted keys of everything."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        inside = nodes(value, f"{prefix}{key}.") if isinstance(value, (dict, list)) else []
        found += [f"{prefix}{key}", *inside]
    return found


PLACES = [(name, key) for name, tree in everything().items() for key in nodes(tree)]
WRONG = [None, "x", -1, 0, [], {}, True, 1.5, [1, 2], [[1]], ["a"], {"a": 1}, math.inf, math.nan]


@settings(max_examples=60)
@given(st.sampled_from(PLACES), st.sampled_from(WRONG))
def test_any_value_anywhere_is_read_or_refused(place, value):
    """Never a traceback; all of these pairs were tried once."""
    name, key = place
    said = None
    try:
        convert_text(yaml.safe_dump(put(everything()[name], key, value)))
    except UserError as error:
        said = str(error)
    assert said is None or "file.yaml" in said


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    tree = put(put(pretraining(), "trainer.max_epochs", 3), "ema", {"enable": True})
    said = refused(put(tree, "net.0.wrappers.0.kwargs.k", 5), tmp_path).splitlines()
    assert len(said) == 3
    assert any("unknown key 'net.0.wrappers.0.kwargs.k'" in line for line in said)


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """48 training and 20 test images of handwritten digits, with UP's lists of them."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for split, first, count in (("train", 0, 48), ("val", 100, 20)):
        (folder / split).mkdir()
        lines = []
        for i in range(first, first + count):
            pixels = (images[i].reshape(8, 8) * 15.9).astype("uint8")
            Image.fromarray(pixels).resize((32, 32)).save(folder / split / f"{i}.png")
            lines.append(f"{i}.png {labels[i]}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


CROP = {"type": "torch_random_resized_crop", "kwargs": {"size": 32, "scale": [0.5, 1]}}
SMALL = ["device=cpu", "compile=false", "evaluate.every_epochs=0"]


def small(tree: Tree) -> Tree:
    """On the digits, one epoch of three steps; relative paths, as UP's files have them."""
    for split, folder in (("train", "train"), ("test", "val")):
        if split in tree["dataset"]:
            kwargs = at(tree, f"dataset.{split}.dataset.kwargs")
            kwargs["meta_file"] = f"{folder}.txt"
            kwargs["image_reader"]["kwargs"]["image_dir"] = folder
            crop = {"type": "torch_center_crop", "kwargs": {"size": 32}}
            kwargs["transformer"] = [CROP if split == "train" else crop, NORMALIZE]
    at(tree, "dataset.train.batch_sampler.kwargs")["batch_size"] = 16
    tree["trainer"]["max_epoch"] = 1
    tree["trainer"]["lr_scheduler"]["kwargs"]["T_max"] = 1
    return tree


@pytest.fixture(scope="module")
def pretrained(digits) -> Path:
    """A folder where a MoCo file has run, written as UP's."""
    tree = small(pretraining("moco", {"dim": 16, "K": 64}, "resnet18"))
    write(digits / "moco.yaml", tree)
    converted = dialects.convert(digits / "moco.yaml", SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(digits)
        keys = native.arguments({"run": converted.run} | converted.tree)
        jobs.pretrain(compose(None, keys).config, quiet=True)
    return digits


def test_keys_on_one_device_are_real(pretrained):
    """They were all ones there, so 48 of these 64 would be the same."""
    step, state = Checkpoints(pretrained / "out/ck/checkpoints", 1).load(torch.device("cpu"))
    assert step == 3
    keys = state["method"]["queue.keys"]
    assert torch.allclose(keys.norm(dim=1), torch.ones(64), atol=1e-3)
    assert len(torch.unique(keys, dim=0)) > 40


def test_the_linear_file_finds_the_run_in_the_place_of_ups_checkpoint(pretrained, command):
    tree = small(classifier(True, "resnet18"))
    tree["saver"]["pretrain_model"] = "out/ck/ckpt_latest.pth"
    write(pretrained / "linear.yaml", tree)
    keys = ["device=cpu", "compile=false", "untrained=false"]
    done = command("run", "linear.yaml", *keys, cwd=pretrained)
    assert done.returncode == 0, done.stderr
    results = json.loads((pretrained / "out/linear/results.json").read_text())
    assert "top1" in json.dumps(results)
    wrong = command("run", "linear.yaml", *keys, "saver.pretrain_model=no.pth", cwd=pretrained)
    assert wrong.returncode != 0
    assert "no.pth" in wrong.stderr


@pytest.mark.parametrize(
    ("wrapper", "kwargs", "encoder", "sizes"),
    [
        ("moco_vit", {"dim": 8, "mlp_dim": 16}, "moco_vit_small", {}),
        ("simclr", {"num_mlp_layer": 3, "dim": 16, "output_dim": 8}, "resnet18", {}),
        ("simsiam", {"dim": 16, "plane": 16, "pred_dim": 8}, "resnet18", {}),
        ("MAE", {}, "mae_vit_base_patch16_dec512d8b", {"decoder_dim": 32, "decoder_depth": 1}),
    ],
)
def test_each_method_trains(wrapper, kwargs, encoder, sizes, digits, command):
    """From two lists in two folders; the transformers are cut down by Selfsight's own keys."""
    tree = small(pretraining(wrapper, kwargs, encoder))
    folder = f"out/{wrapper}-{kwargs.get('num_mlp_layer', 0)}"
    tree["saver"]["save_dir"] = folder
    data = tree["dataset"]["train"]["dataset"]["kwargs"]
    data |= {"meta_file": ["train.txt", "val.txt"], "meta_type": ["moco_imagenet"] * 2}
    data["image_reader"]["kwargs"]["image_dir"] = ["train", "val"]
    data["fraction"] = 0.5
    tree["net"][0]["multi_model"][0]["kwargs"] |= {"img_size": 32} if "vit" in encoder else {}
    for model in tree["net"][0]["multi_model"]:
        model["kwargs"] = tree["net"][0]["multi_model"][0]["kwargs"]
    tiny = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    keys = [f"backbone.options.{key}={value}" for key, value in tiny.items() if "vit" in encoder]
    keys += [
        f"method.{key}={value}"
        for key, value in ({"decoder_heads": 2} | sizes if sizes else {}).items()
    ]
    write(digits / "each.yaml", tree)
    done = command("run", "each.yaml", *SMALL, *keys, cwd=digits)
    assert done.returncode == 0, done.stderr
    records = read_metrics(digits / folder / "metrics.jsonl")
    assert records[-1]["step"] == 2, "of 34 images, half of 48 + 20, in batches of 16"
    assert all(math.isfinite(record["loss"]) for record in records)
    described = load_encoder(digits / folder).description
    assert described["pretrained_on"]["images"] == 34


def test_pretraining_goes_on_from_other_weights(pretrained, command):
    tree = small(pretraining("simsiam", {"dim": 16, "plane": 16, "pred_dim": 8}, "resnet18"))
    tree["saver"] |= {"save_dir": "out/further", "pretrain_model": "out/ck/ckpt.pth"}
    tree["trainer"]["optimizer"]["kwargs"]["lr"] = 1e-30
    write(pretrained / "further.yaml", tree)
    done = command("run", "further.yaml", *SMALL, cwd=pretrained)
    assert done.returncode == 0, done.stderr
    first, then = (load_encoder(pretrained / name).backbone for name in ("out/ck", "out/further"))
    assert torch.equal(first.conv1.weight, then.conv1.weight)


def test_two_files_never_share_a_folder(pretrained, command):
    """SimCLR's v2 file there goes on from v1's checkpoint."""
    write(pretrained / "other.yaml", small(pretraining("simclr", {}, "resnet18")))
    done = command("pretrain", "other.yaml", *SMALL, cwd=pretrained)
    assert done.returncode != 0
    assert "holds another configuration" in done.stderr
    assert "method.name: moco_v1 -> simclr" in done.stderr


def test_the_training_folder_is_no_test(pretrained, command):
    tree = small(classifier(True, "resnet18"))
    tree["saver"] |= {"pretrain_model": "out/ck/ckpt.pth", "save_dir": "out/copied"}
    tree["dataset"]["test"]["dataset"]["kwargs"] |= {"meta_file": "train.txt"}
    reader = at(tree, "dataset.test.dataset.kwargs.image_reader.kwargs")
    reader["image_dir"] = "train"
    write(pretrained / "copied.yaml", tree)
    done = command("linear", "copied.yaml", "device=cpu", cwd=pretrained)
    assert done.returncode != 0
    assert "are among the training images" in done.stderr


@pytest.mark.parametrize("prefix", ["module.encoder_q.", "backbone.encoder."])
def test_ups_checkpoint_goes_strictly_into_the_linear_stage(prefix, digits, command):
    encoder = timm.create_model("resnet18", num_classes=0)
    names = {"conv1.": "layer0.0.", "bn1.": "layer0.1."}
    state = {}
    for name, tensor in encoder.state_dict().items():
        start = next((s for s in names if name.startswith(s)), "")
        state[f"{prefix}{names.get(start, '')}{name.removeprefix(start)}"] = tensor
    name = prefix.replace(".", "-")
    torch.save({"model": state, "epoch": 1}, digits / f"{name}.pth")
    tree = small(classifier(True, "resnet18"))
    tree["saver"] |= {"pretrain_model": f"{name}.pth", "save_dir": f"out/{name}"}
    write(digits / f"{name}.yaml", tree)
    keys = ["device=cpu", "compile=false", "untrained=false", "trainer.max_iter=1"]
    done = command("run", f"{name}.yaml", *keys, cwd=digits)
    assert done.returncode == 0, done.stderr
    assert f"up: {len(state)} tensors used" in done.stdout + done.stderr
    state.popitem()
    torch.save({"model": state}, digits / f"{name}.pth")
    done = command("run", f"{name}.yaml", *keys, cwd=digits)
    assert done.returncode != 0
    assert "the file lacks" in done.stderr or "of several formats" in done.stderr


@pytest.mark.parametrize("name", ["moco", "finetune"])
def test_convert_then_run_is_run(name, digits, command):
    """The same resolved configuration."""
    tree = everything()[name]
    write(digits / "any.yaml", tree)
    done = command("convert", "any.yaml", "-o", "native.yaml", cwd=digits)
    assert done.returncode == 0, done.stderr
    straight = dialects.convert(digits / "any.yaml")
    if name == "moco":
        keys = native.arguments({"run": straight.run} | straight.tree)
        assert compose("native.yaml").config == compose(None, keys).config
        return
    written = native.read(digits / "native.yaml", [])
    configs = [
        compose_trained(c.protocol, c.phase, {}, 224, native.arguments(c.tree))
        for c in (straight, written)
    ]
    assert configs[0] == configs[1]
    assert (written.subject, written.run) == (straight.subject, straight.run)


def test_conversion_keeps_what_is_there_and_refuses_what_no_run_takes(digits, command):
    write(digits / "mine.yaml", pretraining())
    before = (digits / "mine.yaml").read_bytes()
    done = command("convert", "mine.yaml", "-o", "mine.yaml", cwd=digits)
    assert done.returncode == 2
    assert "--output mine.yaml: exists and was not written by" in done.stderr
    assert (digits / "mine.yaml").read_bytes() == before
    for _ in range(2):  # its own may be written again
        assert command("convert", "mine.yaml", "-o", "again.yaml", cwd=digits).returncode == 0
    for tree, word in ((pretraining(), "trainer.max_epoch=-1"), (classifier(True), "data.limit=1")):
        write(digits / "wrong.yaml", tree)
        done = command("convert", "wrong.yaml", word, "-o", "wrong.out.yaml", cwd=digits)
        assert done.returncode == 2, word
        assert not (digits / "wrong.out.yaml").exists()


def test_show_names_the_file_that_set_a_value(digits, command):
    write(digits / "mine.yaml", pretraining())
    lines = command("show", "mine.yaml", cwd=digits).stdout.splitlines()
    (line,) = [line for line in lines if "method.queue_size" in line]
    assert "mine.yaml" in line
