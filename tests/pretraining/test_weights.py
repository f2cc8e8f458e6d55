"""Encoders that do not start at random, and the best of a run's checks."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfsight.encoders.artifact import weights_hash
from selfsight.encoders.description import read_description
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import open_target
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.pretraining import job as jobs
from selfsight.pretraining.build import build_method, with_hash, without_weights
from selfsight.pretraining.config import RunConfig, compose, read_run_config
from tests.channels import images_of, keys_of
from tests.conftest import TINY, heads, power_cuts, selfsight


def config_of(folder, *keys: str, method: str = "simclr") -> RunConfig:
    overrides = [*TINY, *heads(method), "precision=fp32", *keys]
    return compose("digits/simclr", overrides, str(folder)).config


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    jobs.pretrain(config_of(folder, "max_steps=3", "seed=7"), quiet=True)
    return folder


def state(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(backbone.state_dict())


# simclr_v2: its encoder ends in a head that SimCLR's has not
FITTING = [m for m in METHODS if "ViT" not in METHODS[m].needs and m != "simclr_v2"]


@pytest.mark.parametrize("method", FITTING)
def test_every_network_of_a_method_starts_from_the_weights(first, tmp_path, method):
    built = build_method(config_of(tmp_path, f"weights={first}", method=method))
    expected = load_file(first / "encoder.safetensors")
    teacher = built.teacher[:1] if "teacher" in METHODS[method].needs else []
    networks = [built.backbone, *teacher]
    assert len(networks) == 1 + ("teacher" in METHODS[method].needs)
    for network in networks:
        found = state(network)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_goes_on_from_another(first, tmp_path):
    config = config_of(tmp_path / "second", "max_steps=2", f"weights={first}")
    jobs.pretrain(config, quiet=True)
    second = load_encoder(tmp_path / "second")
    assert weights_hash(second.backbone) != weights_hash(load_encoder(first).backbone)
    noted = read_run_config(tmp_path / "second").weights_sha256
    assert second.description["pretrained_on"]["weights_sha256"] == noted
    # what an evaluation calls untrained was never trained at all
    subject = open_target(tmp_path / "second", [], None)
    plain = build_method(config_of(tmp_path, "max_steps=2")).backbone
    assert weights_hash(subject.untrained.build()) == weights_hash(plain)
    # the same weights elsewhere are the same run; others are not
    moved = shutil.copytree(first, tmp_path / "moved")
    again = config.model_copy(update={"weights": str(moved / "encoder.safetensors")})
    jobs.pretrain(again, quiet=True)
    jobs.pretrain(config_of(tmp_path / "third", "max_steps=3", "seed=8"), quiet=True)
    other = config.model_copy(update={"weights": str(tmp_path / "third")})
    with pytest.raises(UserError, match="holds another configuration"):
        jobs.pretrain(other, quiet=True)


def test_another_librarys_weights(tmp_path):
    config = config_of(tmp_path / "run", "max_steps=1", f"weights={tmp_path / 'w.pth'}")
    encoder = build_method(config.model_copy(update={"weights": None, "seed": 5})).backbone
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state(encoder).items()}}, tmp_path / "w.pth"
    )
    built = build_method(config).backbone
    assert weights_hash(built) == weights_hash(encoder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["weights=nowhere"], "weights=nowhere: No such file"),
        (
            ["weights={first}", "backbone.options={{layers: [1, 1, 1, 1]}}"],
            "weights do not fit resnet18",
        ),
        (
            ["weights={first}", "weights_sha256=abc"],
            "the hash of this file is not weights_sha256",
        ),
        (
            ["save_best=true", "evaluate.every_epochs=0"],
            "needs kNN accuracy: set evaluate.every_epochs",
        ),
        (["save_best=true", "evaluate.every_epochs=1", "data.labels=false"], "have no labels"),
        (["save_as=best"], "is no name for a file beside"),
    ],
)
def test_mistakes(first, tmp_path, keys, message):
    keys = [key.format(first=first) for key in keys]
    with pytest.raises(UserError, match=message):
        jobs.pretrain(config_of(tmp_path / "run", "max_steps=2", *keys), quiet=True)


# Encoders that do not fit as they are ------------------------------------------------------------


def tokens(folder, method: str, *keys: str) -> RunConfig:
    """A run of a tiny ViT at 16 px with patches of 4."""
    network = [key for key in heads("mae") if key.startswith("backbone")]
    overrides = [*TINY, *network, *heads(method), *keys]
    return compose(f"digits/{method}", overrides, str(folder)).config


def test_a_kept_head_goes_where_one_is_kept(tmp_path, capsys):
    widths = ["method.hidden_dim=12", "method.output_dim=8"]
    jobs.pretrain(config_of(tmp_path / "a", "max_steps=1", *widths, method="simclr_v2"), quiet=True)
    given = load_file(tmp_path / "a" / "encoder.safetensors")
    body = {k.removeprefix("backbone."): v for k, v in given.items() if k.startswith("backbone.")}
    keys = ["seed=5", f"weights={tmp_path / 'a'}"]
    for method, more, said in (
        ("simclr_v2", widths, "is used as well"),
        ("simclr_v2", ["method.hidden_dim=20"], "simclr_v2 keeps one of other widths"),
        ("byol", [], "its head is left out, for byol keeps none"),
    ):
        config = config_of(tmp_path / method, *keys, *more, method=method)
        built, fresh = (
            build_method(config),
            build_method(config.model_copy(update={"weights": None})),
        )
        assert said in " ".join(capsys.readouterr().err.split())
        found = state(getattr(built.backbone, "backbone", built.backbone))
        assert found.keys() == body.keys()
        assert all(torch.equal(found[key], body[key]) for key in body)
        if "used" in said:
            assert all(torch.equal(state(built.backbone)[k], v) for k, v in given.items())
        for key, value in built.state_dict().items():  # what is no encoder starts as it always does
            if not key.startswith(("backbone.", "teacher.0.")):
                assert torch.equal(value, fresh.state_dict()[key]), key


@pytest.mark.parametrize("method", ["mae", "ijepa", "moco_v3"])
@pytest.mark.parametrize("foreign", [False, True])
def test_positions_that_came_with_weights_stay(tmp_path, method, foreign):
    source = build_method(tokens(tmp_path, "simclr", "seed=5")).backbone
    where = tmp_path / "theirs.pth"
    if foreign:
        torch.save(source.state_dict(), where)
    else:
        jobs.pretrain(tokens(tmp_path / "a", "simclr", "max_steps=1"), quiet=True)
        where = tmp_path / "a"
        source = load_encoder(where).backbone
    config = tokens(tmp_path / "run", method, "max_steps=1", f"weights={where}", "epochs=1")
    built = build_method(config)
    for network in (built.backbone, *list(getattr(built, "teacher", []))[:1]):
        assert torch.equal(network.pos_embed, source.pos_embed)
        assert not network.pos_embed.requires_grad
    jobs.pretrain(config, quiet=True)
    after = open_target(tmp_path / "run", [], None)
    assert after.encoder.description["fixed_positions"]
    assert torch.equal(after.encoder.build().pos_embed, source.pos_embed)
    # the untrained network is that of a run that starts at random
    plain = build_method(without_weights(config)).backbone
    assert weights_hash(after.untrained.build()) == weights_hash(plain)
    assert not torch.equal(plain.pos_embed, source.pos_embed)


def test_weights_of_another_size_are_resampled(tmp_path, capsys):
    from timm.layers import resample_abs_pos_embed

    jobs.pretrain(tokens(tmp_path / "a", "mae", "max_steps=1"), quiet=True)
    given = load_file(tmp_path / "a" / "encoder.safetensors")
    for method in ("mae", "simclr"):
        keys = [f"weights={tmp_path / 'a'}", "views.0.size=32"]
        built = build_method(tokens(tmp_path / "b", method, *keys)).backbone
        said = " ".join(capsys.readouterr().err.split())
        assert "resampled: pos_embed from 1x16x24 to 1x64x24" in said
        expected = {
            **given,
            "pos_embed": resample_abs_pos_embed(given["pos_embed"], [8, 8], num_prefix_tokens=0),
        }
        assert all(torch.equal(value, expected[name]) for name, value in state(built).items())
        assert built.pos_embed.requires_grad == (method == "simclr")


def test_what_was_adapted_is_stored_and_survives_an_interruption(tmp_path, monkeypatch):
    jobs.pretrain(tokens(tmp_path / "a", "simclr", "max_steps=1"), quiet=True)
    keys = [f"weights={tmp_path / 'a'}", "views.0.size=32", "max_steps=4"]
    keys += ["checkpoint={every_epochs: 0, every_steps: 1}"]
    jobs.pretrain(tokens(tmp_path / "whole", "simclr", *keys), quiet=True)
    power_cuts(monkeypatch, 3)
    with pytest.raises(RuntimeError):
        jobs.pretrain(tokens(tmp_path / "run", "simclr", *keys), quiet=True)
    sentence = "resampled: pos_embed from 1x16x24 to 1x64x24"
    for again in (False, True):
        about = read_description(tmp_path / "run" / "encoder.json")
        assert about["pretrained_on"]["adapted"] == sentence
        if not again:
            monkeypatch.undo()
            jobs.pretrain(tokens(tmp_path / "run", "simclr", *keys), quiet=True)
    files = (tmp_path / run / "encoder.safetensors" for run in ("run", "whole"))
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_weights_of_rgb_are_adapted_to_other_channels(
    first, tmp_path, channels, foreign, capsys, monkeypatch
):
    """A gray image is to the encoder of one channel what it is as RGB to that of three."""
    rgb, where = load_encoder(first).backbone, str(first)
    if foreign:
        where = str(tmp_path / "theirs.pth")
        torch.save(rgb.state_dict(), where)
    images = images_of(channels, np.uint8)
    monkeypatch.setattr(jobs, "training_images", lambda *_: images)
    keys = [*keys_of(channels), f"weights={where}", "max_steps=1"]
    config = config_of(tmp_path / "run", *keys)
    built = build_method(config).backbone
    said = " ".join(capsys.readouterr().err.split())
    line = f"adapted from RGB: conv1.weight from 64x3x4x4 to 64x{channels}x4x4"
    assert line in said
    x = torch.rand(2, channels, 16, 16)
    if channels == 1:
        with torch.no_grad():
            found, expected = built.eval()(x), rgb.eval()(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:  # in turn red, green, blue, red, of 3/4 of the strength
        weight, given = built.conv1.weight, rgb.conv1.weight
        assert torch.equal(weight, given[:, [0, 1, 2, 0]] * 3 / 4)
    jobs.pretrain(config, quiet=True)
    stored = json.loads((tmp_path / "run/encoder.json").read_text())
    assert stored["pretrained_on"]["adapted"] == line
    assert stored["channels"] == channels
    untrained = open_target(tmp_path / "run", [], None).untrained.build()
    assert untrained.conv1.weight.shape == built.conv1.weight.shape


def test_an_evaluation_adapts_no_weights(first, tmp_path):
    where = tmp_path / "theirs.pth"
    torch.save(load_encoder(first).backbone.state_dict(), where)
    keys = [key for key in TINY if key.startswith("backbone")] + keys_of(4)[:3]
    with pytest.raises(
        UserError, match=r"of other shape: conv1\.weight \(64, 3, 4, 4\), here \(64, 4"
    ):
        open_target(where, keys, None)
    assert open_target(where, keys[:-3], None).encoder.channels == 3


# All of another run's state -----------------------------------------------------------------------


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    """At a constant rate it is the longer run, bit for bit."""
    keys = ["schedule={name: constant, warmup_epochs: 0}"]
    keys += ["checkpoint={every_epochs: 0, every_steps: 2}"]
    moco = {"method": "moco_v2"}
    jobs.pretrain(config_of(tmp_path / "whole", "max_steps=6", *keys, **moco), quiet=True)
    jobs.pretrain(config_of(tmp_path / "short", "max_steps=4", *keys, **moco), quiet=True)
    on = config_of(tmp_path / "on", "max_steps=6", *keys, f"resume={tmp_path / 'short'}", **moco)
    jobs.pretrain(on, quiet=True)
    jobs.pretrain(on, quiet=True)  # its own checkpoints go first
    earlier = next((tmp_path / "short" / "checkpoints").glob("step-00000002.*"))
    back = config_of(tmp_path / "back", "max_steps=6", *keys, f"resume={earlier}", **moco)
    jobs.pretrain(back, quiet=True)
    whole = load_file(tmp_path / "whole" / "encoder.safetensors")
    for run, first in (("on", 5), ("back", 3)):
        found = load_file(tmp_path / run / "encoder.safetensors")
        assert all(torch.equal(found[name], value) for name, value in whole.items())
        assert read_metrics(tmp_path / run / "metrics.jsonl")[0]["step"] == first


def test_what_cannot_be_resumed(first, tmp_path):
    (tmp_path / "ckpt.pth").write_bytes(b"of another system")
    copied = shutil.copytree(first, tmp_path / "copied")
    (damaged,) = (copied / "checkpoints").glob("step-00000003.*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    for resume, says in (
        (tmp_path / "ckpt.pth", "not a checkpoint of Selfsight"),
        (tmp_path / "nowhere", "not a checkpoint of Selfsight"),
        (tmp_path, "this folder is no run with checkpoints"),
        (damaged, "this file is damaged; take an earlier one"),
        (first, "that run is already at step 3 and this one ends at 3: raise epochs"),
    ):
        config = config_of(tmp_path / "run", "max_steps=3", f"resume={resume}")
        with pytest.raises(UserError, match=re.escape(f"resume={resume}: {says}")):
            jobs.pretrain(config, quiet=True)
    other = config_of(tmp_path / "run2", "max_steps=9", f"resume={first}", method="byol")
    with pytest.raises(
        UserError, match="its state does not fit this method, encoder or optimizer "
    ):
        jobs.pretrain(other, quiet=True)


# The best check -----------------------------------------------------------------------------------

BEST = ["save_best=true", "evaluate.every_epochs=1", "epochs=5", "batch_size=256"]


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A run whose later epochs undo what the first ones learn."""
    folder = tmp_path_factory.mktemp("best") / "run"
    jobs.pretrain(config_of(folder, *BEST, "optimizer.lr=0.1"), quiet=True)
    return folder


def test_the_best_check_is_kept(best):
    checks = [r for r in read_metrics(best / "metrics.jsonl") if "knn" in r]
    highest = max(checks, key=lambda record: record["knn"])  # the first of equals
    described = load_encoder(best / "best.safetensors").description
    assert described["knn"] == highest["knn"]
    assert described["pretrained_on"]["epochs"] == highest["epoch"]
    beside = read_description(best / "best.json")
    assert {k: v for k, v in beside.items() if k != "working_directory"} == described
    assert len(checks) == 5


def test_the_best_check_survives_an_interruption(best, tmp_path, monkeypatch):
    power_cuts(monkeypatch, 18)  # the epochs have 5 steps
    config = config_of(tmp_path / "run", *BEST, "optimizer.lr=0.1")
    with pytest.raises(RuntimeError):
        jobs.pretrain(config, quiet=True)
    monkeypatch.undo()
    jobs.pretrain(config, quiet=True)
    ours, theirs = (f / "best.safetensors" for f in (tmp_path / "run", best))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_best_is_measured_beside_the_run(best):
    selfsight("knn", "run/best.safetensors", "device=cpu", cwd=best.parent)
    (record,) = [
        r
        for r in json.loads((best.parent / "run-best" / "results.json").read_text())
        if r["evaluated"] == "encoder"
    ]
    sha = load_encoder(best / "best.safetensors").description["weights_sha256"]
    assert record["weights_sha256"] == sha
    assert not (best / "results.json").exists()


def test_weights_that_are_no_file_are_one_line(tmp_path):
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        config = compose("digits/simclr", [f"weights={path}"], str(tmp_path / "run")).config
        with pytest.raises(UserError, match=r"weights=.*: it is no plain file"):
            with_hash(config)
