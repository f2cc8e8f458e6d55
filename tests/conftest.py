"""What the tests share: real data if it is there, a tiny encoder, commands as real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

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


class TinyEncoder(nn.Module):
    """A small convolutional encoder without batch statistics, so that ranks cannot differ."""

    num_features = 24

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.GELU(), nn.Conv2d(16, 24, 4, 2, 1), nn.GELU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def tacit(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    """Run a command as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "tacit", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
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
HEADS = {
    "simclr": ["method={name: simclr, hidden_dim: 32, output_dim: 16}"],
    "moco_v2": ["method={name: moco_v2, hidden_dim: 32, output_dim: 16, queue_size: 256}"],
    "byol": ["method={name: byol, hidden_dim: 32, output_dim: 16}"],
}
