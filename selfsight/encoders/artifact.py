"""The pretrained encoder as a file: weights, and a description to build it again, strictly."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from selfsight.config import validate
from selfsight.data.decode import to_rgb
from selfsight.data.images import cut, evaluation_box
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.errors import UserError
from selfsight.files import write_atomically, write_json
from selfsight.methods.heads import EncoderWithProjection
from selfsight.views.ops import augment

FILE = "encoder.safetensors"
BEST = "best.safetensors"
METADATA = ("selfsight", "tacit")  # its key in the file; the second until the package was renamed
NAMED_BY = ("epoch", "step", "loss", "probe", "knn")  # the last two in percent


class Encoder(nn.Module):
    """A frozen pretrained encoder, in eval mode.

    Attributes:
        backbone: the timm model.
        description: how it was made and what input it expects.
        num_features: width D of its features.
    """

    def __init__(self, backbone: nn.Module, description: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.description = backbone, description
        self.num_features: int = backbone.num_features
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, s, s) float, already resized and normalised -> (B, D)."""
        return self.backbone(x)

    @torch.no_grad()
    def embed(self, images: list[str | Path | Image.Image]) -> Tensor:
        """Features (B, D) of image files or PIL images of any size, prepared as in evaluation."""
        size, mean, std = (self.description[key] for key in ("image_size", "mean", "std"))
        crops = []
        for image in images:
            if isinstance(image, Image.Image):
                pixels = np.array(to_rgb(image))
            else:
                with Image.open(image) as opened:
                    pixels = np.array(to_rgb(opened))
            crops.append(cut(pixels, evaluation_box(*pixels.shape[:2]), size))
        x = torch.stack(crops).float().div_(255)
        device = next(self.backbone.parameters()).device
        return self.backbone(augment.normalize(x.to(device), mean, std))


def save_encoder(
    folder: Path, backbone: nn.Module, description: dict[str, Any], name: str = FILE
) -> Path:
    """Write encoder.safetensors, its description inside, and the same as encoder.json."""
    path = folder / name
    tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    # One metadata key: safetensors does not keep the order of several, and equal runs must give
    # equal bytes.
    metadata = {METADATA[0]: json.dumps(description, sort_keys=True)}
    write_json(path.with_suffix(".json"), description)
    write_atomically(path, lambda p: save_file(tensors, p, metadata))
    return path


def save_copy(folder: Path, template: str, record: dict[str, Any]) -> Path:
    """The encoder of a run's folder once more, under a name made of the last metrics."""
    values = {"epoch": round(record["epoch"]), "step": record["step"], "loss": record["loss"]}
    values |= {"probe": record.get("probe_top1"), "knn": record.get("knn")}
    values |= {key: 100 * values[key] for key in ("probe", "knn") if values[key] is not None}
    path = folder / f"{named(template, values)}.safetensors"
    write_atomically(path, lambda p: shutil.copyfile(folder / FILE, p))
    return path


def named(template: str, values: dict[str, Any]) -> str:
    """A file name with NAMED_BY in it; what was not measured is 0, as Lightning has it.

    Raises: ValueError for another field, or if the result is no name of a file.
    """
    values = {key: 0 if value is None else value for key, value in values.items()}
    try:
        name = template.format(**values)
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        reason = f"no such field: {error}" if isinstance(error, KeyError) else str(error)
        known = ", ".join(f"{{{key}}}" for key in NAMED_BY)
        raise ValueError(f"is no name with fields ({reason}); known: {known}") from None
    if not name or name != Path(name).name or name in ("encoder", "best", ".", ".."):
        raise ValueError(f"makes '{name}', which is no name for a file beside {FILE}")
    return name


def load_encoder(where: str | Path) -> Encoder:
    """The encoder of a finished run's folder or of an encoder.safetensors.

    Raises: UserError if the run is not finished or names or shapes of the weights do not fit.
    """
    network = read_network(encoder_file(where))
    return Encoder(network.build(), network.description)


@dataclass(frozen=True)
class Network:
    """An encoder that can be built again and again, always with the same weights.

    Attributes:
        description: as in encoder.safetensors.
        tensors: its state dict.
        where: what an error message calls it.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]
    where: str

    @property
    def image_size(self) -> int:
        return self.description["image_size"]

    def build(self, drop_path: float = 0.0) -> nn.Module:
        """A new module with these weights.

        Args:
            drop_path: stochastic depth in training; of the pretraining's nothing stays.
        Raises: UserError if a name or a shape does not fit.
        """
        config = validate(BackboneConfig, self.description["backbone"])
        config = config.model_copy(update={"drop_path": drop_path})
        backbone = build_backbone(config, self.image_size, seed=0)
        if self.description.get("head_dim"):
            backbone = EncoderWithProjection(backbone, self.description["head_dim"])
        self.fill(backbone, config.name)
        return backbone

    def fill(self, backbone: nn.Module, name: str) -> None:
        """Give a module these weights. Raises: UserError if a name or a shape does not fit.

        Args:
            name: of the module, for a message.
        """
        try:
            backbone.load_state_dict(self.tensors, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"'{self.where}': weights do not fit {name}: {reason}") from None


def encoder_file(where: str | Path) -> Path:
    """The encoder.safetensors of a run's folder, or the file itself."""
    path = Path(where)
    if not path.is_dir():
        return path
    if not (path / FILE).is_file():
        raise UserError(
            f"'{path}' holds no {FILE}: the run is not finished; "
            f"the `selfsight pretrain` command that began it goes on"
        )
    return path / FILE


def is_ours(path: Path) -> bool:
    """Whether the file was written by save_encoder."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(key in (file.metadata() or {}) for key in METADATA)
    except (OSError, SafetensorError):
        return False


def read_network(path: Path) -> Network:
    """The content of an encoder.safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}': not a readable encoder: {error}") from None
    text = next((metadata[key] for key in METADATA if key in metadata), None)
    if text is None:
        raise UserError(f"'{path}': was not written by Selfsight (no description in it)")
    return Network(json.loads(text), tensors, str(path))
