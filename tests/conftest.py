"""What the tests share: real data if it is there, a tiny encoder, commands as real processes."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import settings
from safetensors.torch import save_file

from selfsight import cli
from selfsight.encoders.timm_weights import TimmWeights
from selfsight.methods import METHODS
from selfsight.pretraining import weights
from selfsight.testing import TinyEncoder, tiny_vit  # noqa: F401 (for the tests)
from selfsight.train import engine
from tests.processes import Started

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

os.environ.pop("SELFSIGHT_RECIPES", None)  # the shipped recipes are tested
torch.set_num_threads(1)  # the tests run in two processes on two cores
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def shared_data(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.is_dir():
        pytest.skip(f"needs {name} beside the project, which users do not have")
    return path


@pytest.fixture
def cifar10() -> Path:
    return shared_data("cifar10")


@pytest.fixture
def photographs() -> Path:
    return shared_data("imagenet-sample")


def selfsight(
    *arguments: str, cwd: Path, check: bool = True, **more: str
) -> subprocess.CompletedProcess:
    """Run a command as a user would; `more`: variables of its environment."""
    done = Started(*arguments, cwd=cwd, **more).wait()
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return done


# A training of seconds: digits at 16 px through a ResNet of a few thousand weights.
TINY = [
    "backbone.name=resnet18",
    "backbone.small_images=true",
    "backbone.stem_stride=2",
    "backbone.options={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}",
    "views=digits",
    "batch_size=64",
    "log_every=1",
    "evaluate.every_epochs=0",
    "optimizer={name: adamw, lr: 1e-3}",
    "device=cpu",
]
TINY_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False}


def heads(name: str) -> list[str]:
    """Overrides for a tiny run of a method: small heads, and a ViT where it needs one."""
    keys = [f"method={json.dumps({'name': name, **small_heads(name)})}"]
    if METHODS[name].view_count == (1, 1):
        keys.append("views.0.count=1")
    if "ViT" in METHODS[name].needs:
        options = json.dumps({**TINY_VIT, "global_pool": "avg"})
        keys += ["backbone.name=vit_tiny_patch16_224", "backbone.small_images=false"]
        keys += ["backbone.patch_size=4", f"backbone.options={options}"]
    if METHODS[name].frozen_teacher != "no":
        options = json.dumps({**TINY_VIT, "global_pool": "avg"})
        about = f"{{name: vit_tiny_patch16_224, patch_size: 4, options: {options}}}"
        keys.append(f"teacher={{weights: '{teacher_file()}', backbone: {about}, image_size: 16}}")
    return keys


@pytest.fixture
def no_network(monkeypatch):
    """The models that weights of timm are for, without the weights."""

    def named(name: str) -> TimmWeights:
        return TimmWeights(name[5:].partition(".")[0], Path("none"), (0.5,) * 3, (0.5,) * 3)

    monkeypatch.setattr(weights, "find_timm", named)


def power_cuts(monkeypatch, *at: int) -> None:
    """Let the training stop at these of the steps that this process will begin, counted from 1."""
    forward_backward, calls = engine._forward_backward, []

    def crash(*arguments):
        calls.append(1)
        if len(calls) in at:
            raise RuntimeError("power cut")
        return forward_backward(*arguments)

    monkeypatch.setattr(engine, "_forward_backward", crash)


@functools.cache
def teacher_file() -> Path:
    """Weights of a tiny ViT for 16 px, as a frozen teacher's."""
    torch.manual_seed(3)
    options = {**TINY_VIT, "img_size": 16, "patch_size": 4, "num_classes": 0, "fc_norm": False}
    teacher = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **options)
    path = Path(tempfile.mkdtemp()) / "teacher.safetensors"
    save_file(teacher.state_dict(), path)
    return path


def small_heads(name: str) -> dict[str, int]:
    """Keys that make a method's heads small: every width, and every queue."""
    small = {"predictor_heads": 2, "decoder_heads": 2, "mask_size": 4, "classes": 10}
    small |= {"prototypes": 12, "queue_size": 48, "predictor_depth": 1, "decoder_depth": 1}
    keys = {}
    for key in METHODS[name].Config.model_fields:
        if key.endswith("_dim"):
            keys[key] = 16 if key == "output_dim" else 32
        elif key in small:
            keys[key] = small[key]
    return keys


def in_process(monkeypatch, capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process, which spares the seconds of
    importing torch."""
    monkeypatch.setattr(sys, "argv", ["selfsight", *arguments])
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a shell's background jobs
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return end.value.code or 0, *capture.readouterr()


@pytest.fixture
def command(monkeypatch, capsys):
    """As `selfsight`, in this process."""

    def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        return subprocess.CompletedProcess(arguments, *in_process(monkeypatch, capsys, *arguments))

    return call
