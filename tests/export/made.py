"""Encoders as a finished run leaves them, without the run."""

from pathlib import Path
from typing import Any

import torch

from selfsight.batch import sides
from selfsight.data.config import DataConfig
from selfsight.encoders.artifact import read_network, save_encoder
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.description import describe
from selfsight.files import sealed, write_json
from selfsight.methods.heads import EncoderWithProjection

RESNET = {"name": "resnet18"}
VIT = {"name": "vit_tiny_patch16_224", "options": {"depth": 2}}
ATTO = {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1]}}
TINY = {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}
MEAN, STD = (0.31, 0.42, 0.53), (0.21, 0.22, 0.23)


def encoder(
    folder: Path,
    backbone: dict[str, Any],
    size: int | tuple[int, int] = 32,
    channels: int = 3,
    bits: int = 8,
    head: int | None = None,
    resize: str = "crop",
    seed: int = 0,
    source: str = "digits",
    range: tuple[float, float] | None = None,
    path: Path | None = None,
) -> Path:
    """A folder with encoder.safetensors, whose batch norms have seen images."""
    config = BackboneConfig(**backbone)
    network = build_backbone(config, size, seed, channels=channels)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with torch.no_grad():
        for _ in (1, 2):
            network(torch.randn(4, channels, *sides(size), generator=generator))
        for name, value in network.named_parameters():
            if value.ndim == 1:  # the last norm of a residual branch begins with zeros
                low = 0.5 if name.endswith("weight") else -0.2
                value.uniform_(low, low + 1.0, generator=generator)
    if head:
        network = EncoderWithProjection(network, head)
    network.eval()
    mean, std = (MEAN, STD) if channels == 3 else ((0.4,) * channels, (0.3,) * channels)
    where = {"source": source, "path": path and str(path)}
    data = DataConfig(**where, channels=channels, bits=bits, mean=mean, std=std, range=range)
    trained = {"images": 1437, "epochs": 5, "steps": 110}
    about = describe(network, config, {"name": "simclr"}, data, size, seed, "fp32", trained, resize)
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(folder, network, about)
    (folder / "config.yaml").write_text("method: simclr\n")
    return folder


def record(folder: Path, evaluated: str = "encoder", **more: Any) -> dict[str, Any]:
    """An entry of results.json for the encoder in this folder."""
    sha = read_network(folder / "encoder.safetensors").weights_sha256()
    return {
        "protocol": "knn",
        "kind": "knn",
        "version": 2,
        "evaluated": evaluated,
        "metrics": {"k20": 0.75},
        "settings": {},
        "seed": 0,
        "cost": {"features_seconds": 1.25},
        "weights_sha256": sha if evaluated == "encoder" else None,
        "data": {"source": "digits", "path": None, "train": 1000, "test": 400},
        "overlap": {"paths": 0, "contents": 3, "similar": 9, "allowed": True},
        **more,
    }


def with_results(folder: Path, *records: dict[str, Any]) -> Path:
    write_json(folder / "results.json", [sealed(one) for one in records])
    return folder
