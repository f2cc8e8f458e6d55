"""Encoder files that were altered, by accident or to do harm."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfsight import load_encoder
from selfsight.encoders import artifact
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.description import Budget, read_description
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import open_target
from selfsight.files import sealed
from tests.conftest import ROOT

TINY = {
    "name": "resnet18",
    "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An encoder.safetensors as a pretraining writes it."""
    folder = tmp_path_factory.mktemp("run")
    config = BackboneConfig(**TINY)
    described = {
        "format": 2,
        "backbone": config.model_dump(mode="json"),
        "num_features": 16,
        "image_size": 8,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "seed": 0,
        "precision": "fp32",
        "data": {"source": "digits"},
        "pretrained_on": {"images": 0, "epochs": 0},
    }
    return artifact.save_encoder(folder, build_backbone(config, 8, 0), described)


def read(file):
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()["selfsight"])


def rewritten(file, path, **changes):
    """A copy with another description, its checksum right again, as one who means harm makes it."""
    tensors, described = read(file)
    described.pop("checksum")
    described = sealed({**described, **changes})
    save_file(tensors, path, {"selfsight": json.dumps(described)})
    return path


def test_what_was_written_is_read(file, tmp_path):
    assert load_encoder(file).num_features == 16
    assert "checksum" not in load_encoder(file).description
    assert load_encoder(rewritten(file, tmp_path / "x.safetensors")).num_features == 16
    assert read_description(file.with_suffix(".json"))["image_size"] == 8


def test_no_flipped_bit_is_read(file, tmp_path):
    data, path = file.read_bytes(), tmp_path / "encoder.safetensors"
    rng = np.random.default_rng(0)
    head = 8 + int.from_bytes(data[:8], "little")
    places = [*rng.integers(0, head, 100), *rng.integers(head, len(data), 50)]
    for at in map(int, places):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            found = load_encoder(path)
        except UserError:
            continue
        # white space, or the name of a key that older files lack: nothing that is read is other
        assert artifact.weights_hash(found.backbone) == artifact.weights_hash(
            load_encoder(file).backbone
        ), at
        known = load_encoder(file).description
        assert {k: v for k, v in found.description.items() if k in known} == {
            k: v for k, v in known.items() if k in found.description
        }, at


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["conv1.weight"].view(-1)[0].add_(1e-7),
        lambda t: t.pop("bn1.num_batches_tracked"),
        lambda t: t.update(more=torch.zeros(1)),
        lambda t: t.update({"conv1.weight": t["conv1.weight"].half()}),
        lambda t: t.update({"bn1.weight": t["bn1.bias"], "bn1.bias": t["bn1.weight"]}),
    ],
)
def test_altered_weights_are_refused(file, tmp_path, change):
    tensors, described = read(file)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors", {"selfsight": json.dumps(described)})
    with pytest.raises(UserError, match="its weights are not those"):
        load_encoder(tmp_path / "x.safetensors")


def backbone(**options):
    return {"backbone": {**TINY, "options": {**TINY["options"], **options}}}


HOSTILE = {
    "layers": backbone(layers=[10**6, 1, 1, 1]),
    "many layers": backbone(layers=[60_000, 1, 1, 1]),
    "channels": backbone(channels=[10**7] * 4),
    "large channels": backbone(channels=[60_000] * 4),
    "base width": backbone(base_width=60_000, block="bottleneck"),
    "an infinite option": backbone(block_args={"x": float("inf")}),
    "head": {"head_dim": 10**9},
    "large head": {"head_dim": 10**6},
    "depth": {"backbone": {"name": "vit_tiny_patch16_224", "options": {"depth": 60_000}}},
    "width": {"backbone": {"name": "vit_tiny_patch16_224", "options": {"embed_dim": 60_000}}},
    "positions": {
        "backbone": {"name": "vit_tiny_patch16_224", "patch_size": 1},
        "image_size": 4096,
    },
    "windows": {
        "backbone": {
            "name": "swin_tiny_patch4_window7_224",
            "options": {"window_size": 512, "img_size": 4096},
        }
    },
    "image size": {"image_size": 10**6},
    "image size in words": {"image_size": "x"},
    "no image": {"image_size": -1},
    "mean of one": {"mean": [0]},
    "mean in words": {"mean": ["a", "b", "c"]},
    "no seed": {"seed": None},
    "a seed beyond": {"seed": 2**70},
    "no backbone": {"backbone": None},
    "a list as backbone": {"backbone": [1]},
    "a name of the hub": {"backbone": {"name": "hf-hub:evil/x"}},
    "a folder as name": {"backbone": {"name": "local-dir:/tmp"}},
    "a path as name": {"backbone": {"name": "../../x"}},
    "a long name": {"backbone": {"name": "x" * 10**6}},
    "a file": backbone(checkpoint_path="/tmp/evil.pth"),
    "pretrained": backbone(pretrained=True),
    "pretrained_cfg": backbone(pretrained_cfg={"file": "/tmp/evil.pth"}),
    "data": {"data": [1]},
    "format 99": {"format": 99},
    "no format": {"format": None},
    "a true format": {"format": "2"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_description_that_means_harm_is_one_line(file, tmp_path, what, monkeypatch):
    """In little time and, since each large tensor would be asked for first, in little memory."""
    path = rewritten(file, tmp_path / "x.safetensors", **HOSTILE[what])
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "efficientnet_b0",
    ],
)
def test_the_budget_lets_its_own_network_through(name):
    """And changes nothing in it."""
    config = BackboneConfig(name=name)
    plain = build_backbone(config, 224, 0)
    state = plain.state_dict()
    with Budget(len(state), sum(v.numel() for v in state.values()), "x"):
        again = build_backbone(config, 224, 0)
    assert artifact.weights_hash(again) == artifact.weights_hash(plain)


def test_an_encoder_of_before_the_checksum_is_read():
    legacy = ROOT / "tests/legacy/runs/finished"
    assert load_encoder(legacy).num_features == 8


def test_a_damaged_encoder_json_is_one_line(file, tmp_path):
    """It describes the encoders of a run's checkpoints."""
    run = shutil.copytree(ROOT / "tests/legacy/runs/stopped", tmp_path / "run")
    for content in (b"", b"null", b"[1, 2]", b"\xff\xfe", b"{", b'{"format": 2}'):
        (run / "encoder.json").write_bytes(content)
        with pytest.raises(UserError, match=r"encoder\.json") as error:
            open_target(run, [], None)
        assert "\n" not in str(error.value)
