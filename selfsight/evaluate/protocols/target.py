"""What is evaluated: the encoder of a run, of a file, or of another library's checkpoint."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict

from selfsight import config as layers
from selfsight import own
from selfsight.config import Tree
from selfsight.data.config import DataConfig
from selfsight.data.sources.open import relocated
from selfsight.encoders.artifact import (
    DESCRIPTION,
    FILE,
    INITIAL,
    START,
    STARTED_IN,
    Network,
    encoder_file,
    is_ours,
    read_network,
    weights_hash,
)
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.description import read_description
from selfsight.encoders.foreign import load_foreign
from selfsight.encoders.timm_weights import describes_itself, find_timm
from selfsight.errors import UserError
from selfsight.train.checkpoint import Checkpoints, read_checkpoint
from selfsight.train.config import with_names
from selfsight.views.recipe import Size

CONFIGURATIONS = (".ini", ".yaml", ".yml")
INHERITED = ("seed", "precision", "data")  # keys of the encoder's description


@dataclass(frozen=True)
class EvaluationTarget:
    """An encoder, ready to be built, with its counterpart before the first step.

    Attributes:
        encoder, untrained: the weights after and before pretraining.
        start: those that the pretraining started from, if it did not start at random.
        weights_sha256: of the encoder.
        base: configuration keys that the evaluation takes over from the pretraining.
        folder: where results go; home: the folder of its pretraining, if that is there.
        settings: entries for every record, such as the step of an unfinished run.
        loaded: a line about what was read, for the user.
    """

    encoder: Network
    untrained: Network
    weights_sha256: str
    base: Tree
    folder: Path
    home: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    loaded: str | None = None
    start: Network | None = None

    @property
    def pretraining_data(self) -> DataConfig | None:
        """The images that it was pretrained on; None if it was not, or if they are not known."""
        described = self.encoder.description
        if (
            not described.get("pretrained_on", {}).get("images")
            or "source" not in described["data"]
        ):
            return None
        return layers.validate(DataConfig, _from_where_it_ran(described["data"], self.home))


def open_target(where: str | Path, overrides: list[str], folder: str | None) -> EvaluationTarget:
    """Read what is to be evaluated, strictly.

    Args:
        where: a run's folder, an encoder.safetensors, a checkpoint of a run, or a checkpoint of
            another library; for the last the overrides must hold backbone.name, unless it is a
            folder whose config.json says it.
        folder: where results go; default: the run, or runs/<file name>.
    Raises: UserError for a tensor that is missing, left over or of another shape.
    """
    path = Path(where)
    if not path.exists():
        raise UserError(f"'{where}': no such run folder or file of weights")
    if path.suffix.lower() in CONFIGURATIONS:
        raise UserError(
            f"'{where}': is a configuration, not a file of weights; run it by `selfsight run`"
        )
    step = Checkpoints.step_of(path)
    file_of_others = not path.is_dir() and step is None and not is_ours(path)
    if file_of_others or describes_itself(str(path)):
        return _foreign(path, overrides, Path(folder or f"runs/{path.stem}"))
    _check_described(str(where), path, overrides)
    unfinished = path.is_dir() and not (path / FILE).is_file()
    if step is not None or (unfinished and Checkpoints(path / "checkpoints").files()):
        return _of_checkpoint(path, folder)
    file = encoder_file(path)
    home = file.parent if (file.parent / "config.yaml").is_file() else None
    usual = Path(f"runs/{path.stem}")
    if home:  # another encoder than the run's last one gets a folder of its own
        usual = home if file.name == FILE else _beside(home, file.stem)
    return _target(read_network(file), Path(folder) if folder else usual, home)


def _check_described(where: str, path: Path, overrides: list[str]) -> None:
    """Keys that describe the encoder are refused: its file does. The name of an encoder of the
    user's own may be given, since its code only runs if it is named."""
    tree = layers.fold({}, overrides, lambda low, top: layers.merge(low, with_names(top)))
    keys = dict(layers.flatten({k: tree[k] for k in ("backbone", "format") if k in tree}))
    name = keys.pop("backbone.name", None)
    if not keys and (name is None or own.is_code(str(name))):
        return
    raise UserError(
        f"'{where}': the file describes its encoder itself; leave out backbone.* and format"
    )


def _target(encoder: Network, folder: Path, home: Path | None, **more: Any) -> EvaluationTarget:
    base = {key: encoder.description[key] for key in INHERITED}
    base["data"] = _from_where_it_ran(base["data"], home)
    sha = encoder.weights_sha256()
    initial = home and home / INITIAL
    untrained = encoder.untrained()
    if initial and initial.is_file():
        untrained = replace(read_network(initial), where=untrained.where)
    begun = home and home / START
    if begun and begun.is_file():
        more["start"] = replace(read_network(begun), where="the encoder that the run started from")
    return EvaluationTarget(encoder, untrained, sha, base, folder, home, **more)


def _from_where_it_ran(data: Tree, home: Path | None) -> Tree:
    """The keys of the data, whose relative paths start where the pretraining was started: this may
    be another folder, with other images under the same name."""
    about = home and home / DESCRIPTION
    try:
        start = read_description(about).get(STARTED_IN) if about and about.is_file() else None
    except UserError:  # it is damaged, and the encoder's own description says the rest
        start = None
    if not isinstance(start, str) or not Path(start).is_dir() or Path(start).samefile("."):
        return data
    return relocated(data, lambda path: os.path.join(start, path))


def _of_checkpoint(path: Path, folder: str | None) -> EvaluationTarget:
    """The encoder as it is in a checkpoint, or in the newest one of an unfinished run."""
    one = Checkpoints.step_of(path) is not None  # a file, or a folder with one of each process
    home = path.absolute().parent.parent if one else path
    if not (home / DESCRIPTION).is_file():
        raise UserError(
            f"'{path}': no {DESCRIPTION} in '{home}', which describes the encoder; the "
            f"`selfsight pretrain` command of the run writes it when it continues"
        )
    description = read_description(home / DESCRIPTION)
    if one:
        found = read_checkpoint(path, torch.device("cpu"), f"'{path}'")
    else:
        found = Checkpoints(home / "checkpoints").load(torch.device("cpu"))
    if found is None:
        raise UserError(f"'{path}': every checkpoint is damaged; there is no encoder to measure")
    step, state = found
    if not isinstance(state.get("method"), dict):
        raise UserError(f"'{path}': the checkpoint of step {step} holds no encoder")
    tensors = {
        name.removeprefix("backbone."): value
        for name, value in state["method"].items()
        if name.startswith("backbone.")
    }
    trained = description["pretrained_on"]
    steps = trained.get("steps")
    description["pretrained_on"] = {**trained, "step": step}
    usual = _beside(home, f"step-{step}")
    return _target(
        Network(description, tensors, str(path)),
        Path(folder) if folder else usual,
        home,
        settings={"step": step},
        loaded=f"The encoder of step {step}"
        + (f" of {steps}" if steps else "")
        + f" of '{home}' is measured; results go to '{folder or usual}'",
    )


def _beside(home: Path, name: str) -> Path:
    """The folder RUN-NAME beside a run; also if the run is given as '.'."""
    home = home if home.name else home.absolute()
    return home.with_name(f"{home.name}-{name}")


class _Foreign(layers.Config):
    """The keys that describe another library's checkpoint."""

    model_config = ConfigDict(extra="ignore")
    backbone: BackboneConfig | None = None
    image_size: Size | None = None
    format: str | None = None
    seed: int = 0
    data: DataConfig = DataConfig()


def _foreign(path: Path, overrides: list[str], folder: Path) -> EvaluationTarget:
    tree = layers.fold({}, overrides, lambda low, top: layers.merge(low, with_names(top)))
    base: Tree = {}
    size, resize = None, "crop"
    if describes_itself(str(path)):
        found = find_timm(str(path))
        if "name" not in tree.get("backbone", {}):
            tree = layers.merge({"backbone": found.whole(), "format": found.format}, tree)
            size, resize = found.size, found.resize
        colours = {"mean": found.mean, "std": found.std}
        base = {"data": {key: list(value) for key, value in colours.items() if value}}
    keys = layers.validate(_Foreign, tree)
    if keys.backbone is None:
        raise UserError(
            f"'{path}': does not say which encoder it holds; add backbone.name=... (a timm model) "
            f"and, unless it is 224, image_size=..."
        )
    size = keys.image_size or size or 224
    channels = keys.data.channels
    backbone = build_backbone(keys.backbone, size, keys.seed, channels=channels)
    first = {name: value.clone() for name, value in backbone.state_dict().items()}
    loaded = load_foreign(path, backbone, keys.format)
    description = {
        "backbone": keys.backbone.model_dump(mode="json"),
        "num_features": backbone.num_features,
        "backbone_features": backbone.num_features,
        "image_size": size,
        "resize": resize,
        "channels": channels,
        "seed": keys.seed,
        "data": {},
        "source": loaded.line(),
    }
    return EvaluationTarget(
        Network(description, backbone.state_dict(), str(path)),
        Network(description, first, "the untrained network"),
        weights_hash(backbone),
        base,
        folder,
        loaded=loaded.line(),
    )
