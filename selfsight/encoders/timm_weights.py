"""Pretrained weights that say of which model they are: timm's by name (`timm:NAME.TAG`), and those
of a repository (`timm:hf-hub:ORG/NAME`) or a folder (`timm:local-dir:PATH`, or the path alone) with
a config.json that timm or transformers wrote.

timm and huggingface_hub fetch and cache the files; without a network they come from the cache.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsight.batch import ImageSize
from selfsight.blame import words
from selfsight.config import near
from selfsight.encoders.foreign.described import CONFIG, describe_transformers, read_json
from selfsight.encoders.foreign.formats import FORMATS
from selfsight.encoders.foreign.read import FILES, INDEX, shards
from selfsight.encoders.shown import Resize
from selfsight.encoders.transformers_models import backbone_for
from selfsight.errors import UserError

PREFIX = "timm:"
PREPROCESSOR = "preprocessor_config.json"  # what transformers does to images first
OURS = "encoder.safetensors"  # a folder with it is that of a run
# Arguments in a model's config.json that the images and the method of a run decide.
_DECIDED = ("img_size", "num_classes", "in_chans", "global_pool")
Colours = tuple[float, ...] | None
Find = Callable[[str], Path | None]  # a name -> that file of a folder or repository, if it has it


@dataclass(frozen=True)
class TimmWeights:
    """Weights, and the model that they are for.

    Attributes:
        name: of the model in timm; options: further arguments of it.
        file: with its state dict, or an index of several.
        mean, std: what its images were normalised with; None: not known.
        norm_eps: epsilon of its layer norms; None: that of timm's model.
        format: name in foreign.FORMATS of the layout of the file.
        pooled: the argument global_pool that timm's config.json says; size: (height, width) of its
            images; resize: how timm brings them to it. A run decides these itself, an evaluation of
            the folder takes them over.
    """

    name: str
    file: Path
    mean: Colours
    std: Colours
    options: dict[str, Any] = field(default_factory=dict)
    norm_eps: float | None = None
    format: str = "timm"
    pooled: str | None = None
    size: ImageSize | None = None
    resize: Resize = "crop"

    def backbone(self) -> dict[str, Any]:
        """The keys of the section `backbone` that build the model."""
        eps = {} if self.norm_eps is None else {"norm_eps": self.norm_eps}
        return {"name": self.name, "options": self.options, **eps}

    def whole(self) -> dict[str, Any]:
        """The same of the model that gives the features of the folder itself."""
        found = self.backbone()
        pooled = {} if self.pooled is None else {"global_pool": self.pooled}
        return {**found, "options": {**found["options"], **pooled}}


def describes_itself(weights: str) -> bool:
    """Whether `find_timm` knows the model of these weights: by its name, or by a config.json in
    a folder that is not of a run."""
    folder = Path(weights)
    is_model = (folder / CONFIG).is_file() and not (folder / OURS).is_file()
    return weights.startswith(PREFIX) or is_model


def find_timm(weights: str) -> TimmWeights:
    """The weights of this name, fetched if they are not in the cache.

    Raises: UserError for an unknown name, and if they cannot be fetched: it says which file to put
        where.
    """
    name = weights.removeprefix(PREFIX)
    if name == weights:
        return _in_folder(Path(weights), weights)
    if name.startswith("local-dir:"):
        return _in_folder(Path(name.removeprefix("local-dir:")).expanduser(), weights)
    if name.startswith("hf-hub:"):
        return _of_hub(name.removeprefix("hf-hub:"), weights)
    return _tagged(name, weights)


def _in_folder(folder: Path, weights: str) -> TimmWeights:
    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    config, file = find(CONFIG), next(filter(None, map(find, FILES)), None)
    if config is None or file is None:
        raise UserError(
            f"weights={weights}: this folder needs config.json and {' or '.join(FILES)}, as timm "
            f"writes them (timm.models.save_for_hf), transformers (save_pretrained), and the "
            f"Hugging Face hub has them"
        )
    return _described(config, file, weights, find)


def _described(config: Path, file: Path, weights: str, find: Find) -> TimmWeights:
    """What a config.json says of the weights in a file."""
    try:
        about = read_json(config)
        described = describe_transformers(about, config)
        if described is not None:
            model = backbone_for(described)
            known = next(n for n, f in FORMATS.items() if described.model_type in f.model_types)
            return TimmWeights(file=file, format=known, **model, **_preprocessed(find))
        cfg, given = about["pretrained_cfg"], about.get("model_args") or {}
        options = {key: value for key, value in given.items() if key not in _DECIDED}
        name = str(about["architecture"])
        resize = "squash" if cfg.get("crop_mode") == "squash" else "crop"
        own = {"pooled": given.get("global_pool"), "size": _size(cfg), "resize": resize}
        return TimmWeights(name, file, *_colours(cfg), _pooled(name, options), **own)
    except UserError as error:
        raise UserError(f"weights={weights}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"weights={weights}: '{config}': is not a description that timm or transformers wrote "
            f"({words(error)})"
        ) from None


def _size(cfg: dict[str, Any]) -> ImageSize | None:
    """Of the images, if the file says it: a number for a square."""
    if "input_size" not in cfg:
        return None
    _, height, width = map(int, cfg["input_size"])
    return height if height == width else (height, width)


def _colours(cfg: dict[str, Any]) -> tuple[Colours, Colours]:
    return tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))


def _preprocessed(find: Find) -> dict[str, Colours]:
    """Mean and std by a preprocessor_config.json; None without one."""
    file = find(PREPROCESSOR)
    about = {} if file is None else read_json(file)
    if not isinstance(about, dict) or "image_mean" not in about:
        return {"mean": None, "std": None}
    if about.get("do_normalize") is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    factor = about.get("rescale_factor", 1 / 255)
    if about.get("do_rescale") is False or abs(factor * 255 - 1) > 1e-3:
        raise UserError(f"'{file}': pixels are not scaled to [0, 1]; set data.mean and data.std")
    mean, std = _colours({"mean": about["image_mean"], "std": about["image_std"]})
    return {"mean": mean, "std": std}


# The hub ------------------------------------------------------------------------------------------


def _of_hub(repository: str, weights: str) -> TimmWeights:
    config = _fetched(repository, [CONFIG], weights)
    file = _fetched_weights(repository, weights)
    return _described(config, file, weights, lambda name: _optional(repository, name, weights))


def _optional(repository: str, name: str, weights: str) -> Path | None:
    """A file that a repository may lack."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, name)
    if cached is not None:
        return Path(cached) if isinstance(cached, str) else None  # known not to be there
    return _first(repository, [name], weights)


def _fetched_weights(repository: str, weights: str, names: Sequence[str] = FILES) -> Path:
    """The file of weights, with all files that it names if it is an index."""
    file = _fetched(repository, names, weights)
    if file.name.endswith(INDEX):
        for part in shards(file):
            _fetched(repository, [part], weights)
    return file


def _fetched(repository: str, names: Sequence[str], weights: str) -> Path:
    file = _first(repository, names, weights)
    if file is None:
        raise UserError(f"weights={weights}: '{repository}' has no {' or '.join(names)}")
    return file


def _first(repository: str, names: Sequence[str], weights: str) -> Path | None:
    """The first of these files that a repository on the Hugging Face hub has: that in the cache,
    else the newest; None if it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        with contextlib.suppress(Exception):  # what is wrong beside the cache, the next calls say
            return Path(hf_hub_download(repository, name, local_files_only=True))
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as error:  # of many libraries: no network, no such repository, a licence
            is_there = not isinstance(error, LocalEntryNotFoundError)
            if isinstance(error, EntryNotFoundError) and is_there:
                continue  # and has no such file
            raise UserError(
                f"weights={weights}: '{name}' of '{repository}' is not in the cache and cannot be "
                f"fetched ({words(error)[:200]}); put it and config.json of "
                f"huggingface.co/{repository} into a folder, and set weights=timm:local-dir:FOLDER"
            ) from None
    return None


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
        names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else FILES
        file = _fetched_weights(cfg.hf_hub_id, weights, names)
    else:
        file = _downloaded(cfg.url, weights)
    colours = _colours({"mean": cfg.mean, "std": cfg.std})
    return TimmWeights(model, file, *colours, _pooled(model, {}))


def _pooled(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """With the features that DINOv3 itself evaluates, the class token; timm's are a mean of the
    patches."""
    return {"global_pool": "token", **options} if "dinov3" in name else options


def _downloaded(url: str, weights: str) -> Path:
    from timm.models import _hub

    try:
        return Path(_hub.download_cached_file(url))
    except Exception as error:
        raise UserError(
            f"weights={weights}: cannot be fetched from {url} ({words(error)[:200]}); fetch it by "
            f"hand and set weights=FILE"
        ) from None
