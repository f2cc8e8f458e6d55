"""The pretrained encoder as a file: its weights, and a description with all that an evaluation
needs: how it is built, its data, its input, and what its method prepared before the first step.

A run folder holds it as encoder.json from its first step on.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from selfsight import randomness
from selfsight.batch import ImageSize
from selfsight.config import validate
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.description import METADATA, Budget, parse_description
from selfsight.encoders.shown import Resize
from selfsight.errors import UserError, some
from selfsight.files import Damaged, sealed, write_atomically, write_json
from selfsight.methods.heads import EncoderWithProjection
from selfsight.methods.positions import fix_positions

FILE = "encoder.safetensors"
DESCRIPTION = "encoder.json"
BEST = "best.safetensors"
INITIAL = "initial.safetensors"  # before the first step, of an encoder of the user's own
START = "start.safetensors"  # the encoder that a run with `weights` started from
STARTED_IN = "working_directory"  # key of encoder.json alone: equal runs write equal encoders
NAMED_BY = ("epoch", "step", "loss", "probe", "knn")  # the last two in percent


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """The same of a state dict, without the module that it fills."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)} ".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_encoder(
    folder: Path, backbone: nn.Module, description: dict[str, Any], name: str = FILE
) -> Path:
    """Write encoder.safetensors, its description inside, and the same as encoder.json."""
    path = folder / name
    description = {**description, "weights_sha256": weights_hash(backbone)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    # One metadata key: safetensors does not keep the order of several, and equal runs must give
    # equal bytes.
    metadata = {METADATA[0]: json.dumps(sealed(description), sort_keys=True)}
    write_json(path.with_suffix(".json"), sealed({**description, STARTED_IN: os.getcwd()}))
    needed = sum(tensor.nbytes for tensor in tensors.values())
    write_atomically(path, lambda p: _write(tensors, p, metadata), needed)
    return path


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Raises: OSError if the disk is full, of which safetensors makes an error of its own."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


def save_copy(folder: Path, template: str, record: dict[str, Any]) -> Path:
    """The encoder of a run's folder once more, under a name made of the last metrics."""
    values = {"epoch": round(record["epoch"]), "step": record["step"], "loss": record["loss"]}
    values |= {"probe": record.get("probe_top1"), "knn": record.get("knn")}
    values |= {key: 100 * values[key] for key in ("probe", "knn") if values[key] is not None}
    path = folder / f"{named(template, values)}.safetensors"
    needed = (folder / FILE).stat().st_size
    write_atomically(path, lambda p: shutil.copyfile(folder / FILE, p), needed)
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


@dataclass(frozen=True)
class Network:
    """An encoder that can be built again and again, always with the same weights.

    Attributes:
        description: as in encoder.safetensors.
        tensors: its state dict; None: the weights that the seed initialises.
        where: what an error message calls it.
        size: how many weights, and how many numbers in them, the description may lead to; None
            without tensors: as many as it likes.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor] | None
    where: str
    size: tuple[int, int] | None = None

    @property
    def image_size(self) -> ImageSize:
        size = self.description["image_size"]
        return size if isinstance(size, int) else (size[0], size[1])

    @property
    def resize(self) -> Resize:
        """How an image is brought to this size."""
        return self.description.get("resize", "crop")

    @property
    def channels(self) -> int:
        """Of the images; 3 in descriptions that are older than other numbers."""
        return self.description.get("channels", 3)

    def build(self, drop_path: float = 0.0) -> nn.Module:
        """A new module with these weights.

        Args:
            drop_path: stochastic depth in training; that of the pretraining does not apply.
        Raises: UserError if a name or a shape does not fit.
        """
        backbone = self._initialised(drop_path)
        if self.tensors is not None:
            self.fill(backbone, self.description["backbone"]["name"])
        return backbone

    def without_head(self) -> tuple["Network", dict[str, Tensor]]:
        """The network without the head that SimCLR v2 keeps, and the head's tensors; of another
        method the network as it is, and {}."""
        if not self.description.get("head_dim"):
            return self, {}

        def part(prefix: str) -> dict[str, Tensor]:
            names = [key for key in self.tensors if key.startswith(prefix)]
            return {key.removeprefix(prefix): self.tensors[key] for key in names}

        description = {**self.description, "head_dim": None}
        return replace(self, description=description, tensors=part("backbone.")), part("head.")

    def weights_sha256(self) -> str:
        """The hash of the weights; initial weights are built for it, others are not."""
        return self._sha256

    @functools.cached_property
    def _sha256(self) -> str:
        return weights_hash(self.build()) if self.tensors is None else tensors_hash(self.tensors)

    def untrained(self) -> "Network":
        """The same network before its first step: initialised by its seed, prepared by its method.

        For an encoder that started from other weights, this is the one that did not.
        """
        return Network(self.description, None, "the untrained network", self._size())

    def _size(self) -> tuple[int, int] | None:
        if self.tensors is None:
            return self.size
        return len(self.tensors), sum(value.numel() for value in self.tensors.values())

    def _initialised(self, drop_path: float = 0.0) -> nn.Module:
        size = self._size()
        with Budget(*size, self.where) if size else contextlib.nullcontext():
            return self._from_seed(drop_path)

    def _from_seed(self, drop_path: float) -> nn.Module:
        described = self.description
        config = validate(BackboneConfig, described["backbone"])
        config = config.model_copy(update={"drop_path": drop_path})
        width = described.get("backbone_features")
        seed, channels = described["seed"], self.channels
        backbone = build_backbone(config, self.image_size, seed, width, channels)
        if described.get("fixed_positions") and hasattr(backbone, "pos_embed"):
            fix_positions(backbone)
        if described.get("head_dim"):
            # the first thing that a method initialises, so the generator starts as in build_method
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, described["seed"], 1))
                backbone = EncoderWithProjection(backbone, described["head_dim"])
        return backbone

    def fill(self, backbone: nn.Module, name: str) -> None:
        """Give a module these weights. Raises: UserError if a name or a shape does not fit.

        Args:
            name: of the module, for a message.
        """
        own, given = backbone.state_dict(), self.tensors
        other = [k for k in own if k in given and given[k].shape != own[k].shape]
        shapes = [f"{k} {tuple(given[k].shape)}, not {tuple(own[k].shape)}" for k in other]
        missing, unknown = [k for k in own if k not in given], [k for k in given if k not in own]
        wrong = (("it lacks", missing), ("it has also", unknown), ("of other shape:", shapes))
        if missing or unknown or shapes:
            reason = "; ".join(f"{what} {some(names)}" for what, names in wrong if names)
            raise UserError(f"'{self.where}': weights do not fit {name}: {reason}")
        backbone.load_state_dict(given, strict=True)
        backbone.weights_were_loaded = True  # so a method keeps their positions


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
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any(key in (file.metadata() or {}) for key in METADATA)
    except (OSError, SafetensorError):
        return False


def read_network(path: Path) -> Network:
    """The content of an encoder.safetensors.

    Raises: UserError if it is none, or if it is not as it was written.
    """
    if path.exists() and not path.is_file():
        raise Damaged(path, "it is no plain file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}': not a readable encoder: {error}") from None
    text = next((metadata[key] for key in METADATA if key in metadata), None)
    if text is None:
        raise UserError(f"'{path}': was not written by Selfsight (no description in it)")
    network = Network(parse_description(text, path), tensors, str(path))
    if network.description.get("weights_sha256", network.weights_sha256()) != (
        network.weights_sha256()
    ):
        raise Damaged(path, "its weights are not those that its description was written for")
    return network
