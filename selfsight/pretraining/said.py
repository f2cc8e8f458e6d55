"""What a pretraining prints at its start and at its end."""

from pathlib import Path

import torch

from selfsight.data.bad import read_bad
from selfsight.data.images import Images
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.own_parts import find_method
from selfsight.train.log import console, print_notes
from selfsight.train.optim import scaled_lr
from selfsight.train.precision import pick_precision


def announce(config: RunConfig, images: Images, device: torch.device) -> None:
    print_notes(images.source)
    if config.accumulate > 1 and find_method(config.method.name).couples_images:
        part = config.batch_size // config.accumulate
        console.print(
            f"accumulate={config.accumulate}: the loss of {config.method.name} compares the images "
            f"of a batch with each other, here {part} of {config.batch_size} at a time: another "
            f"objective than without accumulate",
            soft_wrap=True,
        )
    classes = f"{len(images.classes)} classes" if images.classes else "no labels"
    optimizer = config.optimizer
    lr = f"peak lr {scaled_lr(optimizer, config.batch_size):.4g}"
    if optimizer.lr_scaling != "none":
        lr += f" ({optimizer.lr:.4g} per 256 images, {optimizer.lr_scaling})"
    console.print(
        f"{_short(config.method.name)} with {_short(config.backbone.name)} on {len(images):,} "
        f"images ({classes}), "
        f"{device.type} {pick_precision(config.precision, device)}, "
        f"{lr} -> {config.run}",
        soft_wrap=True,
    )


def _short(name: str) -> str:
    """The name of a class, without its file."""
    return name.rpartition(":")[2]


def tell_bad(file: Path) -> None:
    """How many images were broken, if any were."""
    count = len(read_bad(file))
    if count:
        console.print(f"{count} broken images were replaced by others; see {file}", soft_wrap=True)
