"""Pretrained weights of timm by name: `timm:NAME.TAG`, `timm:hf-hub:ORG/NAME` or
`timm:local-dir:PATH`.

timm and huggingface_hub fetch and cache the files; without a network they come from the cache.
"""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsight.blame import words
from selfsight.config import near
from selfsight.errors import UserError

PREFIX = "timm:"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder, the first that it has
# Arguments in a model's config.json that the images and the method of a run decide.
_DECIDED = ("img_size", "num_classes", "in_chans", "global_pool")


@dataclass(frozen=True)
class TimmWeights:
    """Weights, and the model that they are for.

    Attributes:
        name: of the model in timm; options: further arguments of it.
        file: with its state dict.
        mean, std: what its images were normalised with.
    """

    name: str
    file: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)


def find_timm(weights: str) -> TimmWeights:
    """The weights of this name, fetched if they are not in the cache.

    Raises: UserError for an unknown name, and if they cannot be fetched: it says which file to put
        where.
    """
    name = weights.removeprefix(PREFIX)
    if name.startswith("local-dir:"):
        return _in_folder(Path(name.removeprefix("local-dir:")).expanduser(), weights)
    if name.startswith("hf-hub:"):
        return _of_hub(name.removeprefix("hf-hub:"), weights)
    return _tagged(name, weights)


def _in_folder(folder: Path, weights: str) -> TimmWeights:
    config = folder / "config.json"
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if not config.is_file() or file is None:
        raise UserError(
            f"weights={weights}: this folder needs config.json and {' or '.join(FILES)}, as timm "
            f"writes them (timm.models.save_for_hf) and the Hugging Face hub has them"
        )
    return _described(config, file, weights)


def _described(config: Path, file: Path, weights: str) -> TimmWeights:
    """What a config.json says of the weights in a file."""
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
        cfg, given = about["pretrained_cfg"], about.get("model_args") or {}
        options = {key: value for key, value in given.items() if key not in _DECIDED}
        return TimmWeights(str(about["architecture"]), file, *_colours(cfg), options)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"weights={weights}: '{config}' is not a description that timm wrote ({words(error)})"
        ) from None


def _colours(cfg: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))


def _of_hub(repository: str, weights: str) -> TimmWeights:
    config = _fetched(repository, "config.json", weights)
    return _described(config, _fetched(repository, FILES[0], weights), weights)


def _fetched(repository: str, name: str, weights: str) -> Path:
    """A file of a repository on the Hugging Face hub: that in the cache, else the newest."""
    from huggingface_hub import hf_hub_download

    with contextlib.suppress(Exception):  # what is wrong beside the cache, the next call says
        return Path(hf_hub_download(repository, name, local_files_only=True))
    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # of many libraries: no network, no such repository, a licence
        raise UserError(
            f"weights={weights}: '{name}' of '{repository}' is not in the cache and cannot be "
            f"fetched ({words(error)[:200]}); put it and config.json of "
            f"huggingface.co/{repository} into a folder, and set weights=timm:local-dir:FOLDER"
        ) from None


def _tagged(name: str, weights: str) -> TimmWeights:
    """A model with the tag of its weights; without one, those that timm uses by default."""
    import timm
    from timm.models import get_pretrained_cfg, is_model_pretrained

    model, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{model}.*")
    if not timm.is_model(model) or (tag and name not in tags):
        known = tags or timm.list_models(pretrained=True)
        raise UserError(f"weights={weights}: timm has no such weights.{near(name, known)}")
    cfg = get_pretrained_cfg(name)
    if cfg is None or not is_model_pretrained(model) or not (cfg.hf_hub_id or cfg.url):
        raise UserError(f"weights={weights}: timm has no weights of {model}; name a file instead")
    if cfg.hf_hub_id:
        file = _fetched(cfg.hf_hub_id, cfg.hf_hub_filename or FILES[0], weights)
    else:
        file = _downloaded(cfg.url, weights)
    return TimmWeights(model, file, *_colours({"mean": cfg.mean, "std": cfg.std}))


def _downloaded(url: str, weights: str) -> Path:
    from timm.models import _hub

    try:
        return Path(_hub.download_cached_file(url))
    except Exception as error:
        raise UserError(
            f"weights={weights}: cannot be fetched from {url} ({words(error)[:200]}); fetch it by "
            f"hand and set weights=FILE"
        ) from None
