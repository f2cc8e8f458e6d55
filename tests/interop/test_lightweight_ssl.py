"""Lightweight-SSL's files: every key has its effect, from the file to the numbers."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
import typer
import yaml
from PIL import Image
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from selfsight import config as layers
from selfsight import interop as dialects
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.evaluate.protocols import read_results
from selfsight.evaluate.protocols.target import open_target
from selfsight.interop import native
from selfsight.interop.cli import processes
from selfsight.interop.lightweight_tables import SSL_ARGS
from selfsight.interop.report import Converted, Fate
from selfsight.logging.log import read_metrics
from selfsight.processes import SIGNALS
from selfsight.train.optim import lr_factor, scaled_lr
from tests.conftest import ROOT, selfsight
from tests.interop.opened import composed, converted
from tests.interop.test_ini import dump
from tests.processes import Started, forked

SECTIONS = ("wandb_args", "ckpt_args", "ssl_args")
FLAT = {  # each flat key that pretraining has
    "seed": 3,
    "epoch_start": 0,
    "epochs": 100,
    "compute_cfg": {"devices": 4, "accelerator": "gpu", "strategy": "ddp"},
    "backbone": "resnet50",
    "ssl_method": "simclr",
    "dataset": "imagenet",
    "data_dir": "/data/ImgNet",
    "batch_size": 512,
    "aug_crop_lst": [2],
    "custom_ds_cfg": {},
    "num_workers": 18,
    "log_type": "wandb",
}
WANDB = {"save_dir": "logs", "name": "a", "project": "b", "entity": "c", "offline": False}
CKPT = {
    "dirpath": "ckpts",
    "filename": "simclr-{epoch}-{lin_acc1:.2f}",
    "every_n_epochs": 25,
    "save_top_k": -1,
    "monitor": "lin_acc1",
    "only_eval": False,
    "ckpt_path": "none.ckpt",
}
SSL = {"lr": 4.8, "weight_decay": 1e-6, "warmup_epochs": 10, "proj_hidden_dim": 2048}
SSL |= {"proj_output_dim": 128, "temperature": 0.2}
# The published recipes: method, its [ssl_args], and what they are natively.
RECIPES = [
    ("simclr", SSL, ("simclr", 4.8, {"hidden_dim": 2048, "output_dim": 128, "temperature": 0.2})),
    (
        "simsiam",
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "proj_hidden_dim": 2048}
        | {"proj_output_dim": 2048, "pred_hidden_dim": 256},
        ("simsiam", 0.1, {"hidden_dim": 2048, "output_dim": 2048, "predictor_dim": 256}),
    ),
    (
        "barlowtwin",
        {"lr": 1.6, "weight_decay": 1.5e-6, "warmup_epochs": 10, "proj_hidden_dim": 2048}
        | {"proj_output_dim": 256, "lamb": 5e-3, "scale_loss": 0.1},
        ("barlow_twins", 1.6, {"output_dim": 256, "off_diagonal_weight": 5e-3, "loss_scale": 0.1}),
    ),
    (
        "nnclr",
        {"queue_size": 65536, "proj_hidden_dim": 2048, "proj_output_dim": 256}
        | {"pred_hidden_dim": 4096, "temperature": 0.2},
        ("nnclr", 0.3 * 8, {"queue_size": 65536, "predictor_dim": 4096, "temperature": 0.2}),
    ),
    (
        "byol",
        {"lr": 3.2, "momentum": 0.996, "proj_hidden_dim": 4096, "pred_hidden_dim": 4096},
        ("byol", 3.2, {"hidden_dim": 4096, "momentum": 0.996}),
    ),
    (
        "mocov2",
        {"lr": 0.03, "momentum": 0.9, "queue_size": 4096, "temperature": 0.07},
        ("moco_v2", 0.03, {"queue_size": 4096, "temperature": 0.07}),
    ),
]


def write(folder: Path, flat: dict, phase: str = "pretrain", name: str = "x", **sections) -> Path:
    """An INI file in the folder of its phase; sections not given have all of their keys."""
    tree = {**flat, "wandb_args": WANDB, "ckpt_args": CKPT, "ssl_args": SSL, **sections}
    path = folder / phase / f"{name}.ini"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# of a test\n" + dump(tree, SECTIONS))
    return path


def fates(converted: Converted) -> dict[str, Fate]:
    return {entry.key: entry.fate for entry in converted.entries}


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        dialects.convert(path, list(overrides))
    return str(error.value).splitlines()


# What a file becomes ------------------------------------------------------------------------------


def test_every_key_of_the_language_has_a_fate(tmp_path):
    flat = {**FLAT, "dataset": "custom", "data_dir": {"train": "a", "test": "b"}}
    flat["custom_ds_cfg"] = {"crop_size": 48, "mean": [0.5] * 3, "hue": 0.2}
    every = {key: 1 if key.endswith(("_dim", "_size", "_epochs")) else 0.5 for key in SSL_ARGS}
    path = write(tmp_path, flat, ssl_args=every)
    found = fates(dialects.convert(path))
    nested = ("compute_cfg", "data_dir", "custom_ds_cfg")
    expected = {key for key in flat if key not in nested}
    expected |= {f"{key}.{inner}" for key in nested for inner in flat[key]}
    for section, keys in (("wandb_args", WANDB), ("ckpt_args", CKPT), ("ssl_args", every)):
        expected |= {f"{section}.{key}" for key in keys}
    assert found.keys() == expected
    assert found["ssl_args.lamb"] == Fate.WITHOUT_EFFECT  # SimCLR has none
    assert found["ssl_args.temperature"] == Fate.TAKEN
    assert found["log_type"] == Fate.TAKEN
    asked = composed(str(path), []).config.log.wandb
    assert (asked.folder, asked.name, asked.project) == ("logs", "a", "b")
    assert (asked.entity, asked.offline) == ("c", False)


@pytest.mark.parametrize(("method", "args", "expected"), RECIPES, ids=[r[0] for r in RECIPES])
def test_the_published_recipes(tmp_path, method, args, expected):
    path = write(tmp_path, {**FLAT, "ssl_method": method}, ssl_args=args)
    config = composed(str(path), []).config
    name, lr, keys = expected
    assert config.method.name == name
    assert keys.items() <= config.method.model_dump().items()
    assert config.batch_size == 4 * 512
    assert scaled_lr(config.optimizer, config.batch_size) == pytest.approx(lr)
    assert config.optimizer.momentum == 0.9
    assert config.optimizer.weight_decay == args.get("weight_decay", config.optimizer.weight_decay)
    assert config.optimizer.name == ("sgd" if method in ("simsiam", "mocov2") else "lars")
    assert config.schedule.warmup_epochs == args.get("warmup_epochs", 0)


def test_the_flat_keys(tmp_path):
    path = write(tmp_path, {**FLAT, "data_dir": "/data/ImgNet/train"})
    config = composed(str(path), []).config
    assert (config.seed, config.epochs, config.start_epoch) == (3, 100, 0)
    assert (config.device, config.sync_batchnorm) == ("cuda", True)
    assert (config.backbone.name, config.data.workers) == ("resnet50", 18)
    assert config.data.path == "/data/ImgNet"  # not the training folder for both splits
    assert [(group.count, group.size) for group in config.views] == [(2, 224)]
    assert config.checkpoint.every_epochs == 25
    assert config.checkpoint.keep == 4  # all
    assert config.run == "ckpts/simclr"
    assert config.save_as == "simclr-epoch={epoch}-lin_acc1={probe:.2f}"


@pytest.mark.parametrize(
    ("dataset", "source", "where", "size"),
    [
        ("cifar10", "torchvision:CIFAR10", "/data/tch_ds", 32),
        ("cifar100", "torchvision:CIFAR100", "/data/tch_ds", 32),
        ("stl10", "torchvision:STL10", "/data/tch_ds", 96),
        ("imagenet", "auto", "/data/ImgNet", 224),
        ("slim", "auto", None, 64),
        ("custom", "auto", None, 224),
    ],
)
def test_data_sets_and_where_they_are(tmp_path, dataset, source, where, size):
    flat = {key: value for key, value in FLAT.items() if key != "data_dir"}
    path = write(tmp_path, {**flat, "dataset": dataset})
    if where is None:
        (line,) = problems(path)
        assert "data_dir: missing key" in line
        where = "mine"
    config = composed(str(path), [f"data_dir={where}"]).config
    assert (config.data.source, config.data.path) == (source, where)
    assert config.views[0].size == size
    if dataset not in ("slim", "custom"):
        assert composed(str(path), []).config.data == config.data


def test_two_folders(tmp_path):
    flat = {**FLAT, "data_dir": {"train": "there/train", "test": "there/val"}}
    data = composed(str(write(tmp_path, flat)), []).config.data
    assert (data.path, data.test_path) == ("there/train", "there/val")
    path = write(tmp_path, {**flat, "dataset": "cifar10"})
    (line,) = problems(path)
    assert "x.ini:9: data_dir.test=there/val: torchvision keeps both splits in one folder" in line


def test_custom_images_in_their_own_words(tmp_path):
    words = {"crop_size": 40, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "min_scale": 0.3}
    words |= {"solarization_prob": 0.25, "gaussian_prob": 0.0, "color_jitter_prob": 0.7}
    path = write(tmp_path, {**FLAT, "dataset": "custom", "custom_ds_cfg": words})
    config = composed(str(path), []).config
    (group,) = config.views
    assert (group.size, group.solarize, group.blur, group.jitter) == (40, 0.25, 0, 0.7)
    assert group.crop_scale == (0.3, 1.0)
    assert (config.data.mean, config.data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_crops_devices_and_seeds(tmp_path):
    path = write(tmp_path, {**FLAT, "ssl_method": "simsiam"}, ssl_args={})
    assert [g.count for g in composed(str(path), ["aug_crop_lst=[1, 1]"]).config.views] == [1, 1]
    assert composed(str(path), ["seed=-1"]).config.seed == 0
    one = composed(str(path), ["compute_cfg={'accelerator': 'auto'}"]).config
    assert (one.batch_size, one.device, one.sync_batchnorm) == (512, "auto", False)
    keys = ["compute_cfg.devices=[0, 1]", "compute_cfg.accumulate_grad_batches=2"]
    parts = composed(str(path), [*keys, "compute_cfg.precision=16"]).config
    assert (parts.batch_size, parts.accumulate, parts.precision) == (2048, 2, "auto")
    for top, keep in ((3, 3), (0, 1)):
        kept = composed(str(path), [f"ckpt_args.save_top_k={top}"]).config
        assert (kept.checkpoint.keep, kept.save_best, kept.evaluate.every_epochs) == (
            keep,
            True,
            25,
        )
    assert not composed(str(path), ["ckpt_args.monitor="]).config.save_best


def test_the_name_of_the_folder_is_the_phase(tmp_path):
    flat = {**FLAT, "pretrain_ckpt_path": "ckpts/simclr", "epochs": 90}
    assert dialects.convert(write(tmp_path, flat)).phase == "pretrain"
    converted = dialects.convert(write(tmp_path, flat, "linear_eval"))
    assert converted.phase == "linear-augmented"
    assert (converted.subject, converted.protocol) == ("ckpts/simclr", "linear-augmented")
    assert converted.run == "ckpts/simclr-linear_eval"
    assert converted.tree["epochs"] == 90
    assert "optimizer" not in converted.tree  # the protocol's: LAMB, cosine
    assert fates(converted)["ssl_args.lr"] == Fate.WITHOUT_EFFECT


def test_mistakes_are_listed_at_once_with_their_lines(tmp_path):
    path = write(tmp_path, {**FLAT, "batchsize": 3, "log_type": "wandbb"}, ssl_args={"lrr": 1.0})
    lines = problems(path, "epochs='100'@str", "dataset=cifar", "compute_cfg.acelerator=cpu")
    text = "\n".join(lines)
    assert "x.ini:15: unknown key 'batchsize'. Did you mean 'batch_size'" in text
    assert "x.ini:14: log_type=wandbb: no such log_type. Did you mean 'wandb'?" in text
    assert "unknown key 'ssl_args.lrr'. Did you mean 'lr'" in text
    assert "epochs=100: expected @int, found @str" in text
    assert "dataset=cifar: no such dataset. Did you mean 'cifar10'" in text
    assert "x.ini:5: unknown key 'compute_cfg.acelerator'. Did you mean 'accelerator'" in text
    assert len(lines) == 6


def test_a_tpu_and_an_evaluation_without_its_classifier_are_refused(tmp_path):
    assert "accelerator=tpu" in problems(write(tmp_path, FLAT), "compute_cfg.accelerator=tpu")[0]
    flat = {**FLAT, "pretrain_ckpt_path": "a"}
    found = fates(dialects.convert(write(tmp_path, flat)))
    assert found["pretrain_ckpt_path"] == Fate.WITHOUT_EFFECT
    path = write(tmp_path, flat, "linear_eval", ckpt_args={"only_eval": True})
    assert "ckpt_args.ckpt_path: missing key" in problems(path)[0]
    path = write(tmp_path, FLAT, "linear_eval")
    assert "pretrain_ckpt_path: missing key" in problems(path)[0]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=one@str", "seed=one: expected @int, found @str"),
        ("compute_cfg={'devices': 0}", "compute_cfg.devices=0: expected a number of devices"),
        ("compute_cfg=[1]", "compute_cfg=[1]: expected keys below it"),
        ("aug_crop_lst=[]", "aug_crop_lst=[]: expected a list of numbers of crops, such as [2]"),
        ("data_dir={'test': 'b'}", "data_dir.train: missing key"),
        ("data_dir={'train': 'a', 'val': 'b'}", "unknown key 'data_dir.val'"),
        ("custom_ds_cfg={'train': 'a'}", "data_dir also names the images"),
        ("custom_ds_cfg={'mean': 0.5}", "custom_ds_cfg.mean=0.5: expected @list, found @float"),
        (
            "custom_ds_cfg={'min_scale': 'a'}",
            "custom_ds_cfg.min_scale=a: expected @float, found @str",
        ),
        ("ssl_args.momentum='big'@str", "ssl_args.momentum=big: expected @float, found @str"),
        ("ssl_args.proj_hidden_dim=1.5@float", "proj_hidden_dim=1.5: expected @int, found @float"),
        ("ckpt_args.only_eval=True", "ckpt_args.only_eval=True: only for linear evaluation"),
        ("ckpt_args.save_top_k=1.5@float", "ckpt_args.save_top_k=1.5: expected @int, found @float"),
        ("ssl_args.pred_hidden_dim=7", "pred_hidden_dim=7: byol's predictor is as wide as"),
        ("ckpt_args.save_top_k=-2", "ckpt_args.save_top_k=-2: must be at least 0, or -1"),
        ("compute_cfg.num_nodes=0", "compute_cfg.num_nodes=0: must be at least 1"),
        ("epoch_start=101", "epoch_start=101: must be at most epochs=100"),
        ("data_dir=[1]", "data_dir=[1]: expected @str or @dict, found @list"),
        ("backbone=", "backbone=: missing key; for example resnet50@str"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, override, line):
    path = write(tmp_path, {**FLAT, "dataset": "custom", "ssl_method": "byol"})
    (found,) = problems(path, override)
    assert line in found


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"epochs": -2}, "3: epochs=-2: input should be greater than or equal to 1"),
        ({"seed": -7}, "2: seed=-7: input should be greater than or equal to 0"),
        ({"num_workers": -4}, "13: num_workers=-4: data.workers=-4: input should be greater"),
        ({"backbone": "resnet19"}, "5: backbone=resnet19: backbone.name=resnet19: timm has no"),
        ({"data_dir": "nowhere"}, "8: data_dir=nowhere: data.path=nowhere: no such file or folder"),
        ({"aug_crop_lst": [3]}, "10: aug_crop_lst=[3]: views: makes 3 of an image, simclr takes 2"),
        (
            {"custom_ds_cfg": {"min_scale": 2.0}},
            "11: custom_ds_cfg.min_scale=2.0: views.0={'count': 2,",
        ),
        (
            {"custom_ds_cfg": {"mean": [0.5]}},
            "11: custom_ds_cfg.mean=[0.5]: data.mean=[0.5]: 1 numbers for data.channels=3; give 3",
        ),
        (
            {"ssl_args": {**SSL, "temperature": -0.2}},
            "25: ssl_args.temperature=-0.2: method.temperature=-0.2: input should be greater than",
        ),
    ],
)
def test_what_only_the_run_finds_wrong_is_said_in_the_files_words(folder, command, keys, line):
    path = small(folder, **keys)
    done = command("run", str(path), "--run", "wrong", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"selfsight: {path}:{line}")


def test_what_lightning_takes_for_nothing_is_nothing(tmp_path):
    none = {"gradient_clip_val": None, "max_steps": -1, "precision": None, "devices": -1}
    path = write(tmp_path, {**FLAT, "compute_cfg": {"accelerator": "cpu", **none}, "log_type": ""})
    config = composed(str(path), []).config
    assert (config.clip_gradient, config.max_steps, config.batch_size) == (None, None, 512)
    found = fates(dialects.convert(path))
    assert found["compute_cfg.devices"] == Fate.REPLACED  # all devices: of the CPU one
    assert found["compute_cfg.max_steps"] == found["log_type"] == Fate.WITHOUT_EFFECT


def test_names_of_files_without_what_is_not_measured(tmp_path):
    for template, native_name in (
        ("a_{epoch:03d}", "a_epoch={epoch:03d}"),
        ("{step}-{nce_loss:.3f}", "step={step}-nce_loss={loss:.3f}"),
        ("a-{lin_acc5:.1f}-{epoch}", "a-epoch={epoch}"),
        ("{lin_acc5}", "x"),  # the INI file's name
        ("sub/a-{epoch}", "a-epoch={epoch}"),
    ):
        path = write(tmp_path, FLAT, ckpt_args={"filename": template})
        assert composed(str(path), []).config.save_as == native_name


def test_the_first_epoch_trains_and_nothing_jumps_after_the_warm_up(tmp_path):
    """There, the whole first epoch ran at rate 0, and the schedule jumped."""
    config = composed(str(write(tmp_path, FLAT)), []).config
    rates = [lr_factor(config.schedule, (s + 0.5) / 2000, 100) for s in range(2000)]
    assert rates[0] > 0
    assert np.mean(rates[:20]) == pytest.approx(0.05, rel=0.02)
    assert max(rates) == pytest.approx(1, rel=0.01)
    assert np.abs(np.diff(rates)).max() < 0.006


# Two ways to run a file ---------------------------------------------------------------------------


def test_convert_then_run_equals_run(tmp_path, command):
    for number, (method, args, _) in enumerate(RECIPES):
        flat = {**FLAT, "ssl_method": method}
        path = write(tmp_path, flat, name=f"m{number}", ssl_args=args)
        out = tmp_path / f"{number}.yaml"
        done = command("convert", str(path), "seed=5", "-o", str(out), cwd=tmp_path)
        assert done.returncode == 0
        assert "ssl_args.proj_hidden_dim" in done.stdout or "proj_hidden_dim" not in args
        assert composed(str(out), []).config == composed(str(path), ["seed=5"]).config
    flat = {**FLAT, "pretrain_ckpt_path": "ckpts/simclr"}
    path = write(tmp_path, flat, "linear_eval")
    command("convert", str(path), "-o", str(out), cwd=tmp_path)
    direct, written = converted(path), converted(out)
    for key in ("phase", "subject", "protocol", "classifier", "run"):
        assert getattr(written, key) == getattr(direct, key)
    assert native.arguments(written.tree) == native.arguments(direct.tree)


def test_a_file_of_the_wrong_phase_is_not_run(tmp_path, command):
    path = write(tmp_path, {**FLAT, "pretrain_ckpt_path": "a"}, "linear_eval")
    done = command("pretrain", str(path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "selfsight: this file is for `selfsight linear-augmented`; "
        "`selfsight run` finds that itself\n"
    )


def test_run_takes_configer_path_and_words_over_it(tmp_path, command, monkeypatch):
    path = write(tmp_path, {**FLAT, "pretrain_ckpt_path": "nowhere"}, "linear_eval")
    done = command("run", cwd=tmp_path)
    assert "set CONFIGER_PATH" in done.stderr
    monkeypatch.setenv("CONFIGER_PATH", str(path))
    for words in ((), ("seed=5",), ("--opts", "seed", "-1")):
        done = command("run", *words, cwd=tmp_path)
        assert done.stderr.splitlines()[-1] == (
            f"selfsight: {path}:15: pretrain_ckpt_path=nowhere: 'nowhere': no such run folder or "
            "file of weights"
        )
    done = command("run", "sed=5", cwd=tmp_path)
    assert "unknown key 'sed'. Did you mean 'seed'" in done.stderr


def test_the_makefile_and_the_script_take_configer_path(tmp_path):
    stub = tmp_path / "bin" / "selfsight"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\necho "$@"\n')
    stub.chmod(0o755)
    script = tmp_path / "run_script" / "run_script.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "run_script" / "run_script.sh", script)
    path = {"PATH": f"{stub.parent}:/usr/bin:/bin"}
    env = {**path, "CONFIGER_PATH": "./pretrain/a b.ini"}
    done = subprocess.run([script, "epochs=5"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "run ./pretrain/a b.ini epochs=5\n"
    done = subprocess.run([script], env=path, capture_output=True, text=True)
    assert "CONFIGER_PATH" in done.stderr
    make = ["make", "-n", "run", "CONFIGER_PATH=pretrain/x.ini", "KEYS=epochs=5"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'selfsight run "pretrain/x.ini" epochs=5' in done.stdout
    assert "digits/simclr" not in done.stdout


# To the numbers -----------------------------------------------------------------------------------

SMALL = {
    "seed": 1,
    "epochs": 2,
    "compute_cfg": {"accelerator": "cpu"},
    "backbone": "resnet18",
    "ssl_method": "simclr",
    "dataset": "custom",
    "data_dir": "photos/train",
    "batch_size": 8,
    "aug_crop_lst": [2],
    "custom_ds_cfg": {"crop_size": 32},
    "log_type": "csv",
}
SMALL_CKPT = {"dirpath": "ckpts", "filename": "simclr-{epoch}-{lin_acc1:.2f}", "every_n_epochs": 1}
SMALL_SSL = {"lr": 0.1, "proj_hidden_dim": 32, "proj_output_dim": 16, "temperature": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photographs of two classes in train/ and val/."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, colour in (("dark", 60), ("light", 190)):
            where = folder / "photos" / split / label
            where.mkdir(parents=True)
            for n in range(count):
                pixels = rng.normal(colour, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(where / f"{n}.png")
    return folder


def small(folder: Path, phase: str = "pretrain", **keys) -> Path:
    sections = {"ckpt_args": SMALL_CKPT, "ssl_args": SMALL_SSL, "wandb_args": {"offline": False}}
    sections |= {key: keys.pop(key) for key in SECTIONS if key in keys}
    return write(folder, {**SMALL, **keys}, phase, "simclr", **sections)


LINEAR = {"pretrain_ckpt_path": "ckpts/simclr.ckpt", "aug_crop_lst": [1], "epochs": 1}


@pytest.fixture(scope="module")
def pretrained(folder) -> str:
    """ckpts/simclr below the folder; what the command said."""
    return selfsight("run", str(small(folder)), cwd=folder).stderr


@pytest.fixture(scope="module")
def classifier(folder, pretrained) -> Path:
    """The folder of a trained linear classifier."""
    selfsight("linear", str(small(folder, "linear_eval", **LINEAR)), cwd=folder)
    (home,) = (folder / "ckpts/simclr-linear_eval/evaluations").iterdir()
    return home


def test_from_the_file_to_an_encoder(folder, pretrained):
    run = folder / "ckpts" / "simclr"
    config = layers.read_yaml(run / "config.yaml")
    assert (config["batch_size"], config["epochs"]) == (8, 2)
    assert "16 images (2 classes)" in pretrained  # the whole of train/
    with (run / "metrics.csv").open() as file:  # log_type = csv
        rows = list(csv.DictReader(file))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in records]
    assert {name for record in records for name in record} == rows[0].keys()
    (named,) = run.glob("simclr-epoch=2-lin_acc1=*.safetensors")
    assert named.read_bytes() == (run / "encoder.safetensors").read_bytes()
    probe = records[-1]["probe_top1"]
    assert named.stem.endswith(f"lin_acc1={100 * probe:.2f}")
    assert load_encoder(named).description["method"]["temperature"] == 0.2


def test_from_the_file_to_the_numbers(folder, classifier, command):
    records = read_results(folder / "ckpts" / "simclr-linear_eval")
    encoder = next(r for r in records if r["evaluated"] == "encoder")
    assert encoder["kind"] == encoder["protocol"] == "linear-augmented"
    assert encoder["settings"]["changed"]["epochs"] == 1
    assert encoder["metrics"].keys() == {"top1", "top5", "steps"}
    assert encoder["data"]["train"] == 16
    assert encoder["data"]["test"] == 8
    assert encoder["overlap"]["contents"] == 0
    optimizer = layers.read_yaml(classifier / "encoder" / "config.yaml")["optimizer"]
    assert (optimizer["name"], optimizer["weight_decay"]) == ("lamb", 0)

    before = sorted((p, p.stat().st_mtime_ns) for p in classifier.rglob("*") if p.is_file())
    args = {**SMALL_CKPT, "only_eval": True, "ckpt_path": str(classifier / "encoder")}
    tested = small(folder, "linear_eval", **LINEAR, ckpt_args=args)
    done = command("run", str(tested), "--run", "again", cwd=folder)
    assert done.returncode == 0, done.stderr
    (record,) = read_results(folder / "again")
    assert record["metrics"] == encoder["metrics"]
    after = sorted((p, p.stat().st_mtime_ns) for p in classifier.rglob("*") if p.is_file())
    assert after == before, "only tested"


class Forked(Started):
    """As Popen, but forked from a process that has imported torch."""

    all: ClassVar[list["Forked"]] = []

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: object) -> None:
        super().__init__(*args[len(processes.COMMAND) :], cwd=Path.cwd(), **env)
        self.pid = self._process.pid
        self.all.append(self)

    def wait(self, timeout: float) -> int | None:
        self._process.join(timeout)
        return self.poll()


@pytest.fixture
def launcher(monkeypatch):
    """Torch's launcher in this process, without what it leaves behind."""
    forked(os.getpid).join()  # the server of forks starts without what is set here
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
    monkeypatch.setattr(processes, "CHECK_EVERY", 0.1)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield subprocess_handler
    for number, handler in before.items():
        signal.signal(number, handler)


def test_devices_start_processes_that_share_the_batch(folder, command, launcher, monkeypatch):
    monkeypatch.setattr(launcher, "Popen", Forked)
    keys = {"ssl_method": "simsiam", "batch_size": 4, "epochs": 1, "log_type": "tensorboard"}
    sections = {"ckpt_args": {"dirpath": "ckpts", "filename": "two", "monitor": "lin_acc1"}}
    both = {"devices": 2, "accelerator": "cpu", "strategy": "ddp"}
    path = small(folder, **keys, ssl_args={"lr": 0.1}, **sections, compute_cfg=both)
    assert command("run", str(path), cwd=folder).returncode == 0
    said = [Started.wait(rank).stdout for rank in Forked.all]
    assert [text.count("Done: ") for text in said] == [1, 0]
    run = folder / "ckpts" / "two"
    assert json.loads((run / "cost.json").read_text())["processes"] == 2
    assert layers.read_yaml(run / "config.yaml")["batch_size"] == 8
    assert list((run / "tensorboard").iterdir())
    best = load_encoder(run / "best.safetensors").description
    assert best["knn"] == max(r.get("knn", 0) for r in read_metrics(run / "metrics.jsonl"))


# In place of `selfsight`: what each of two processes does.
STUB = """
import glob, os, signal, sys, time
rank, word = int(os.environ["RANK"]), sys.argv[1]
def save(number, _):
    time.sleep(0.5)
    open(f"saved-{rank}", "w").close()
    print("Stopped", file=sys.stderr)
    sys.exit(128 + number)
for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), signal.SIG_IGN if word == "mistake" else save)
with open(f"began-{rank}", "w") as file:
    file.write(repr(sys.argv[2:]))
while len(glob.glob("began-*")) < 2:
    time.sleep(0.01)
if word == "mistake":
    sys.exit(print("selfsight: wrong", file=sys.stderr) or 2)
if word == "killed" and rank == 0:
    sys.exit(print("another has ended", file=sys.stderr) or 2)
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "alone" and rank == 1:
    sys.exit(print("lost", file=sys.stderr) or 3)
for _ in range(600):  # a signal just before a sleep is handled after it
    time.sleep(0.1)
"""


def launch(where: Path, *words: str) -> BaseProcess:
    """Start the launcher of two processes."""
    (where / "stub.py").write_text(STUB)
    return forked(_launcher, str(where), words)


def _launcher(where: str, words: tuple[str, ...]) -> None:
    os.chdir(where)
    os.dup2(os.open("said", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    sys.argv = ["selfsight", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a background job
    processes.COMMAND = [sys.executable, "stub.py"]
    processes.CHECK_EVERY = 0.1
    try:
        processes.share_out(2, "cpu")
    except typer.Exit as end:
        sys.exit(end.exit_code)


ALL = ", so all have ended; the same command continues\n"
ODD = ["a b", "$HOME ${local_rank} $$", 'it\'s "quoted"', "é\n"]


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("mistake", 2, "selfsight: wrong\n"),
        ("alone", 3, "Stopped\nlost\n"),
        ("killed", 137, f"another has ended\nselfsight: process 1 was ended by SIGKILL{ALL}"),
    ],
)
def test_what_goes_wrong_in_a_process_is_said_once(tmp_path, word, code, said):
    """A mistake that all have, and the end of one, after which the others cannot go on."""
    started = launch(tmp_path, word, *ODD)
    started.join(60)
    assert (started.exitcode, (tmp_path / "said").read_text()) == (code, said)
    assert [(tmp_path / f"began-{n}").read_text() for n in (0, 1)] == [repr(ODD)] * 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_lets_all_processes_save(tmp_path, name):
    started = launch(tmp_path, "wait")
    while len(list(tmp_path.glob("began-*"))) < 2:
        time.sleep(0.05)
    os.kill(started.pid, signal.Signals[name])
    started.join(60)
    assert (tmp_path / "said").read_text() == "Stopped\n"
    assert started.exitcode == 128 + signal.Signals[name]
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_epoch_start_needs_a_checkpoint_of_that_epoch(folder, pretrained, command):
    path = small(folder, epoch_start=1)
    assert command("run", str(path), cwd=folder).returncode == 0  # what is there has got so far
    done = command("run", str(path), "--run", "elsewhere", cwd=folder)
    assert done.returncode == 2
    assert "start_epoch=1: 'elsewhere/checkpoints' holds no checkpoint of that epoch" in done.stderr


def test_only_eval_tests_nothing_but_a_classifier_of_this_encoder(folder, classifier, command):
    keys = {"pretrain_ckpt_path": "ckpts/simclr", "aug_crop_lst": [1]}
    for where in ("ckpts/simclr", str(classifier / "untrained"), "nowhere.ckpt"):
        args = {"only_eval": True, "ckpt_path": where}
        path = small(folder, "linear_eval", **keys, ckpt_args=args)
        done = command("run", str(path), cwd=folder)
        assert done.returncode == 2
        assert f"--classifier {where}: holds no classifier that Selfsight trained" in done.stderr
    other = command("run", str(small(folder, seed=2)), "--run", "other", cwd=folder)
    assert other.returncode == 0, other.stderr
    words = ["linear-augmented", "other", "--classifier", str(classifier / "encoder")]
    done = command(*words, cwd=folder)
    assert done.returncode == 2
    assert "was trained on another encoder than 'other'" in done.stderr


def test_two_files_with_one_dirpath_and_name_do_not_share_a_run(folder, pretrained, command):
    """There, the second would have resumed the first's checkpoint."""
    other = write(
        folder, {**SMALL, "ssl_method": "byol"}, name="byol", ckpt_args=SMALL_CKPT, ssl_args={}
    )
    done = command("run", str(other), cwd=folder)
    assert done.returncode == 2
    assert "'ckpts/simclr' holds another configuration" in done.stderr
    found = yaml.safe_load((folder / "ckpts/simclr/config.yaml").read_text())
    assert found["method"]["name"] == "simclr"


def test_its_own_checkpoints_are_measured(tmp_path):
    """Lightning's file: the backbone under its own names beside heads, classifier and state."""
    backbone = timm.create_model("resnet18", num_classes=0)
    heads = {"projector.linear1.weight": (8, 512), "projector.bn1.bias": (8,)}
    heads |= {"classifier.weight": (10, 512), "classifier.bias": (10,)}
    heads |= {"predictor.linear1.weight": (8, 8)}
    heads |= {"queue": (64, 8), "queue_y": (64,), "queue_ptr": (1,)}
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {name: torch.zeros(shape) for name, shape in heads.items()}
    more = {"epoch": 99, "global_step": 9, "pytorch-lightning_version": "1.6.0", "callbacks": {}}
    more |= {"optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {}, "loops": {}}
    torch.save({"state_dict": state, **more}, tmp_path / "x.ckpt")
    flat = {**SMALL, "ssl_method": "nnclr", "pretrain_ckpt_path": str(tmp_path / "x.ckpt")}
    job = converted(write(tmp_path, flat, "linear_eval"))
    subject = open_target(job.subject, native.arguments(job.tree), job.run)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(subject.encoder.build().eval()(x), backbone.eval()(x))
    assert subject.encoder.image_size == 32
