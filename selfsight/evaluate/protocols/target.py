"""What is evaluated: the encoder of a run, of a file, or of another library's checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ConfigDict
from torch import nn

from selfsight import config as layers
from selfsight import randomness
from selfsight.config import Tree
from selfsight.encoders.artifact import FILE, Network, encoder_file, is_ours, read_network
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.foreign import load_foreign
from selfsight.errors import UserError
from selfsight.evaluate.features import weights_hash
from selfsight.methods.heads import EncoderWithProjection
from selfsight.pretraining.build import build_method, without_weights
from selfsight.pretraining.config import RunConfig, read_run_config

CONFIGURATIONS = (".ini", ".yaml", ".yml")
INHERITED = ("seed", "device", "precision")  # from the encoder's own run, beside its data


@dataclass(frozen=True)
class EvaluationTarget:
    """An encoder, ready to be built, with its counterpart before the first step.

    Attributes:
        encoder, untrained: the weights after and before pretraining.
        weights_sha256: of the encoder.
        base: configuration keys that its own run had.
        folder: where results go; home: the folder of its pretraining, if that is there.
        run: the configuration of its pretraining, if a run folder says it.
        loaded: what was read, in one sentence, for a file of another library.
    """

    encoder: Network
    untrained: Network
    weights_sha256: str
    base: Tree
    folder: Path
    home: Path | None = None
    run: RunConfig | None = None
    loaded: str | None = None


def open_target(where: str | Path, overrides: list[str], folder: str | None) -> EvaluationTarget:
    """Read what is to be evaluated, strictly.

    Args:
        where: a run's folder, an encoder.safetensors, or a checkpoint of another library; for the
            last the overrides must hold backbone.name.
        folder: where results go; default: the run, or runs/<file name>.
    Raises: UserError for anything that does not fit to the last tensor.
    """
    path = Path(where)
    if not path.exists():
        raise UserError(f"'{where}': no such run folder or file of weights")
    if path.suffix.lower() in CONFIGURATIONS:
        raise UserError(
            f"'{where}': is no file of weights; a configuration runs by `selfsight run`"
        )
    if not path.is_dir() and not is_ours(path):
        return _foreign(path, overrides, Path(folder or f"runs/{path.stem}"))
    if any(argument.startswith(("backbone.", "format=")) for argument in overrides):
        raise UserError(f"'{where}': says itself what encoder it holds; leave out backbone.*")
    file = encoder_file(path)
    encoder = read_network(file)
    home = file.parent if (file.parent / "config.yaml").is_file() else None
    data = {"mean": encoder.description["mean"], "std": encoder.description["std"]}
    base: Tree = {"seed": encoder.description["seed"], "data": data}
    run, before = None, None
    if home:
        run = read_run_config(home)
        tree = run.tree()
        base = {**{key: tree[key] for key in INHERITED}, "data": {**tree["data"], **data}}
        before = build_method(without_weights(run)).backbone
    else:
        before = _before(encoder)
    untrained = Network(encoder.description, before.state_dict(), "the untrained network")
    usual = Path(f"runs/{path.stem}")
    if home:  # what is not the run's last encoder has results of its own
        usual = home if file.name == FILE else home.with_name(f"{home.name}-{file.stem}")
    target = Path(folder) if folder else usual
    sha = weights_hash(encoder.build())
    return EvaluationTarget(encoder, untrained, sha, base, target, home, run)


def _before(encoder: Network) -> nn.Module:
    """The network with weights that its seed gives it."""
    described, width = encoder.description, encoder.description.get("head_dim")
    config = layers.validate(BackboneConfig, described["backbone"])
    backbone = build_backbone(config, described["image_size"], described["seed"])
    if not width:
        return backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, described["seed"], 1))
        return EncoderWithProjection(backbone, width)


class _Foreign(layers.Config):
    """The keys that describe another library's checkpoint."""

    model_config = ConfigDict(extra="ignore")
    backbone: BackboneConfig | None = None
    image_size: int | None = None
    format: str | None = None
    seed: int = 0


def _foreign(path: Path, overrides: list[str], folder: Path) -> EvaluationTarget:
    keys = layers.validate(_Foreign, layers.fold({}, overrides))
    if keys.backbone is None:
        raise UserError(
            f"'{path}': does not say which encoder it holds; add backbone.name=... (a timm model) "
            f"and, unless it is 224, image_size=..."
        )
    size = keys.image_size or 224
    backbone = build_backbone(keys.backbone, size, keys.seed)
    first = {name: value.clone() for name, value in backbone.state_dict().items()}
    loaded = load_foreign(path, backbone, keys.format)
    description = {
        "backbone": keys.backbone.model_dump(mode="json"),
        "num_features": backbone.num_features,
        "image_size": size,
        "seed": keys.seed,
        "source": loaded.line(),
    }
    return EvaluationTarget(
        Network(description, backbone.state_dict(), str(path)),
        Network(description, first, "the untrained network"),
        weights_hash(backbone),
        {},
        folder,
        loaded=loaded.line(),
    )
