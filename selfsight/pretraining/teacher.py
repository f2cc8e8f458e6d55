"""A frozen teacher by its weights: of a run, of another library, of timm by name."""

from typing import Any

import torch
from pydantic import field_validator

from selfsight.batch import ImageSize, Normalization
from selfsight.config import Config, may_change
from selfsight.data.config import DataConfig
from selfsight.encoders.artifact import is_ours, read_network
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.foreign import load_foreign
from selfsight.encoders.timm_weights import describes_itself, find_timm
from selfsight.errors import UserError
from selfsight.methods.frozen import FrozenTeacher
from selfsight.pretraining.weights import weights_file
from selfsight.train.precision import physical_memory
from selfsight.views.recipe import Size, ViewGroup


class TeacherConfig(Config):
    """A frozen encoder that a method such as distill or dinov3 learns from."""

    # as the key `weights`: a run's folder, a file, timm:NAME.TAG, ...
    weights: str | None = may_change(None)
    weights_sha256: str | None = None  # of that file; filled in when the run starts
    backbone: BackboneConfig | None = None  # which encoder a file of another library holds
    # side in pixels of what it sees (default: of a run its own, else that of the largest views)
    image_size: Size | None = None
    # what its pixels are normalised with (default: of a run and of timm their own, else data.mean)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cache: bool = may_change(False)  # keep its features in memory, for views that are always equal

    @field_validator("std")
    @classmethod
    def _std(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std is not None and min(std, default=0) <= 0:
            raise ValueError("pixels are divided by it: each must be above 0")
        return std

    @field_validator("backbone", mode="before")
    @classmethod
    def _name(cls, backbone: Any) -> Any:
        """A name alone is short for its key, as outside."""
        return {"name": backbone} if isinstance(backbone, str) else backbone


def build_teacher(
    config: TeacherConfig,
    data: DataConfig,
    views: list[ViewGroup],
    size: ImageSize,
    seed: int,
) -> tuple[FrozenTeacher, str]:
    """The teacher, and what was loaded as a sentence.

    Args:
        data, views: of the student; size: of its largest views.
    Raises: UserError for weights that do not fit, and for views that cannot be cached.
    """
    if config.cache:
        _check_fixed(views)
    path = weights_file(config.weights)
    if is_ours(path):
        if config.backbone is not None:
            raise UserError(
                f"teacher.backbone: '{path}' describes its encoder itself; leave it out"
            )
        network = read_network(path)
        own = Normalization(*(tuple(network.description[key]) for key in ("mean", "std")))
        size, said = config.image_size or network.image_size, ""
        encoder = network.build()
    else:
        found = find_timm(config.weights) if describes_itself(config.weights) else None
        about = config.backbone
        if about is None and found is None:
            raise UserError(
                f"teacher.weights={config.weights}: does not say which encoder it holds; add "
                f"teacher.backbone.name=... (a timm model)"
            )
        own = data.normalization
        if found is not None:
            own = Normalization(found.mean or own.mean, found.std or own.std)
        about = about or BackboneConfig(**found.backbone())
        size = config.image_size or about.image_size or size
        sizes = {"teacher.image_size": size}
        encoder = build_backbone(about, sizes, seed, channels=data.channels)
        said = load_foreign(path, encoder, found and found.format, resample=True).line()
    own = Normalization(config.mean or own.mean, config.std or own.std)
    return FrozenTeacher(encoder, size, *_between(data.normalization, own), config.cache), said


def _between(a: Normalization, b: Normalization) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift that make what is normalised by a what is normalised by b."""
    if len({len(x) for x in (*a, *b)}) > 1:
        raise UserError(
            f"teacher.mean={list(b.mean)}: the images have {len(a.mean)} channels; give as many "
            f"numbers to teacher.mean and teacher.std"
        )
    scale = tuple(x / y for x, y in zip(a.std, b.std, strict=True))
    shift = tuple((x - y) / s for x, y, s in zip(a.mean, b.mean, b.std, strict=True))
    return scale, shift


def _check_fixed(views: list[ViewGroup]) -> None:
    """Raises: UserError for views that are drawn anew in each epoch."""
    for number, group in enumerate(views):
        plain = ViewGroup(crop_scale=(1, 1), crop_ratio=(1, 1)).model_dump(
            exclude={"count", "size"}
        )
        given = group.model_dump()
        random = [f"{key}={given[key]}" for key, value in plain.items() if given[key] != value]
        if random:
            raise UserError(
                f"teacher.cache=true: views.{number} are drawn anew each time "
                f"({', '.join(random[:4])}); set teacher.cache=false, or views without it: "
                f"views=[{{size: {group.size}, crop_scale: [1, 1], crop_ratio: [1, 1]}}]"
            )


@torch.no_grad()
def check_cache(teacher: FrozenTeacher, sample: torch.Tensor, images: int, views: int) -> None:
    """Raises: UserError if the features of all images need more than half of the memory."""
    found = teacher(sample)
    needed = images * views * sum(part.nbytes for part in found[:2] if part is not None)
    memory = physical_memory()
    if needed > memory / 2:
        raise UserError(
            f"teacher.cache=true: the features of {images:,} images are {needed / 2**30:.0f} GiB, "
            f"and this machine has {memory / 2**30:.0f}; set teacher.cache=false"
        )
