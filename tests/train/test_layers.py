"""Layers of a loaded encoder that learn more slowly, or only later."""

import re

import pytest
import torch
from safetensors.torch import load_file

from selfsight.errors import UserError
from selfsight.methods.heads import EncoderWithProjection
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import compose
from selfsight.train.checkpoint import read_checkpoint
from selfsight.train.hooks import Hook
from selfsight.train.layers import FrozenBackbone, depths
from tests.conftest import TINY, TinyEncoder, heads, power_cuts
from tests.pretraining.test_weights import config_of
from tests.processes import two_ranks

EVERY_STEP = "checkpoint={every_steps: 1, every_epochs: 0, keep: 9}"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    jobs.pretrain(config_of(folder, "max_steps=2", "seed=7"), quiet=True)
    return folder


def state(folder, step: int) -> dict[str, torch.Tensor]:
    (file,) = (folder / "checkpoints").glob(f"step-{step:08}.*")
    return read_checkpoint(file, torch.device("cpu"), "it")[1]["method"]


def changed(folder, start: dict[str, torch.Tensor], step: int, part: str) -> set[str]:
    found = state(folder, step)
    return {k for k, v in start.items() if k.startswith(part) and not torch.equal(found[k], v)}


@pytest.mark.parametrize("method", ["simclr", "simclr_v2", "byol"])
def test_a_frozen_encoder_stays_while_heads_learn(first, tmp_path, method):
    keys = [f"weights={first}", "max_steps=4", EVERY_STEP]
    config = config_of(tmp_path / "run", *keys, "freeze_backbone=0.5", method=method)
    start = {k: v.clone() for k, v in jobs.build_method(config).state_dict().items()}
    inner = "backbone.backbone." if method == "simclr_v2" else "backbone."
    check = Hook(lambda state: {"seen": 1.0}, steps=1)  # in eval mode, between the steps
    jobs.pretrain(config, quiet=True, hooks=[check])
    for step in (1, 2):
        assert not changed(tmp_path / "run", start, step, inner)  # the statistics of norms, too
        assert changed(tmp_path / "run", start, step, "projector.")
    if method == "simclr_v2":  # the layer that it keeps is a head
        assert changed(tmp_path / "run", start, 1, "backbone.head.")
    encoder = {k for k in start if k.startswith(inner)}
    assert changed(tmp_path / "run", start, 3, inner) == encoder
    jobs.pretrain(config_of(tmp_path / "free", *keys, method=method), quiet=True)
    assert changed(tmp_path / "free", start, 1, inner) == encoder  # the control


def test_interrupted_while_frozen_is_uninterrupted(first, tmp_path, monkeypatch):
    keys = [f"weights={first}", "max_steps=6", EVERY_STEP, "freeze_backbone=0.5"]
    jobs.pretrain(config_of(tmp_path / "whole", *keys), quiet=True)
    power_cuts(monkeypatch, 3, 6)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            jobs.pretrain(config_of(tmp_path / "cut", *keys), quiet=True)
    jobs.pretrain(config_of(tmp_path / "cut", *keys), quiet=True)
    whole, cut = (tmp_path / name / "encoder.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_two_ranks_freeze_as_one(tmp_path):
    network = [key for key in heads("mae") if key.startswith("backbone")]
    keys = [*TINY, *network, *heads("simclr"), "precision=fp32", "max_steps=4"]
    keys += ["optimizer={name: sgd, lr: 0.1}"]  # AdamW would make rounding as large as gradients
    for name, more in (("w", ["seed=3"]), ("one", ["freeze_backbone=0.5"])):
        keys += [f"weights={tmp_path / 'w'}"] if name == "one" else []
        config = compose("digits/simclr", [*keys, *more], str(tmp_path / name)).config
        jobs.pretrain(config, quiet=True)
    keys += more
    done = two_ranks("pretrain", "digits/simclr", *keys, "--run", "two", cwd=tmp_path)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    one, two = (load_file(tmp_path / name / "encoder.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)


def test_layer_decay_slows_each_layer(tmp_path):
    """One step of plain SGD moves a weight by the rate of its layer."""
    keys = ["optimizer={name: sgd, lr: 0.5, momentum: 0, weight_decay: 0, layer_decay: 0.5}"]
    keys += ["schedule={name: constant, warmup_epochs: 0}", "max_steps=1"]
    config = config_of(tmp_path / "slow", *keys)
    start = {k: v.clone() for k, v in jobs.build_method(config).state_dict().items()}
    depth = depths(jobs.build_method(config).backbone)
    assert len(set(depth.values())) > 3
    jobs.pretrain(config, quiet=True)
    jobs.pretrain(config_of(tmp_path / "fast", *keys, "optimizer.layer_decay=1"), quiet=True)
    slow, fast = (state(tmp_path / name, 1) for name in ("slow", "fast"))
    for key, number in depth.items():
        name = f"backbone.{key}"
        factor = 0.5 ** (max(depth.values()) + 1 - number)
        moved, whole = slow[name] - start[name], fast[name] - start[name]
        torch.testing.assert_close(moved, factor * whole, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(slow["projector.0.weight"], fast["projector.0.weight"])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["freeze_backbone=0.5"], "freeze_backbone=0.5: an encoder that starts at random"),
        (["freeze_backbone=1"], "freeze_backbone=1: input should be less than 1"),
        (["optimizer.layer_decay=0"], "optimizer.layer_decay=0: input should be greater than 0"),
    ],
)
def test_mistakes(tmp_path, keys, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config_of(tmp_path, *keys)


def test_encoders_and_methods_that_do_not_fit():
    from selfsight.methods import SimCLR
    from selfsight.methods.method import Method

    class Headless(Method):
        def forward(self, batch):
            raise AssertionError

    with pytest.raises(UserError, match=r"freeze_backbone=0.5: Headless has no head"):
        FrozenBackbone(Headless(TinyEncoder()), 0.5)
    with pytest.raises(UserError, match=r"layer_decay: .* TinyEncoder does not; set it to 1"):
        depths(SimCLR(TinyEncoder()).backbone)


def test_depths_grow_from_the_input_to_a_kept_head():
    import timm

    resnet = EncoderWithProjection(timm.create_model("resnet18", num_classes=0), 32)
    found = depths(resnet)
    assert found.keys() == dict(resnet.named_parameters()).keys()
    assert found["backbone.conv1.weight"] == 0
    assert found["backbone.layer1.0.conv1.weight"] < found["backbone.layer4.1.conv1.weight"]
    assert found["head.0.weight"] == max(found.values()) > found["backbone.layer4.1.conv2.weight"]
