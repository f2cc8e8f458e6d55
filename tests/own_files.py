"""Code of a user's own, as files: a method with a helper, an encoder, images."""

from pathlib import Path

METHOD = '''
from torch import nn

import selfsight
from helper import scale
from selfsight.losses import nt_xent


class Mine(selfsight.Method):
    """SimCLR with one layer."""

    class Config(selfsight.MethodConfig):
        temperature: float = 0.2

    def __init__(self, backbone, config=None):
        super().__init__(backbone, config)
        self.projector = nn.Linear(backbone.num_features, 16)

    def forward(self, batch):
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        return selfsight.Output(scale(nt_xent(z1, z2, self.config.temperature)), h1, (z1, z2))
'''
HELPER = "def scale(loss):\n    return 2 * loss\n"
ENCODER = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU())

    def forward(self, x):
        return self.layers(x).mean((2, 3))


def build(width=8):
    return Net(width)
"""
DATA = """
import numpy as np
import torch
from sklearn.datasets import load_digits


class Photos(torch.utils.data.Dataset):
    def __init__(self, split):
        pixels, labels = load_digits(return_X_y=True)
        rows = slice(0, 300) if split == "train" else slice(300, 400)
        self.pixels = (pixels[rows] * 15.9).astype(np.uint8).reshape(-1, 8, 8)
        self.targets = labels[rows]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.pixels[i], int(self.targets[i])
"""
NAMES = [
    "method.name=my_method.py:Mine",
    "backbone.name=my_net.py:build",
    "data.source=my_data.py:Photos",
]
KEYS = ["views=digits", "batch_size=50", "epochs=3", "log_every=1", "device=cpu"]


def write(folder: Path) -> None:
    """my_method.py with helper.py, my_net.py and my_data.py."""
    (folder / "my_method.py").write_text(METHOD)
    (folder / "helper.py").write_text(HELPER)
    (folder / "my_net.py").write_text(ENCODER)
    (folder / "my_data.py").write_text(DATA)
