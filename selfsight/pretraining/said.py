"""What a pretraining prints at its start and at its end."""

from pathlib import Path

import torch

from selfsight.data.bad import read_bad
from selfsight.data.images import Images
from selfsight.logging.log import console, print_notes
from selfsight.methods import Method
from selfsight.methods.heads import BatchNorm
from selfsight.pretraining.config import RunConfig
from selfsight.recompute import depends_on_batch
from selfsight.train.optim import scaled_lr
from selfsight.train.precision import pick_precision


def announce(config: RunConfig, images: Images, method: Method, device: torch.device) -> None:
    print_notes(images.source)
    if config.accumulate > 1:
        _say_what_accumulates(config, method)
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


def _say_what_accumulates(config: RunConfig, method: Method) -> None:
    """A line, if the parts of an accumulated batch are another objective than the whole batch."""
    name, part = config.method.name, config.batch_size // config.accumulate
    if method.couples_images:
        why = f"the loss of {name} compares the images of a batch with each other"
    elif any(isinstance(module, BatchNorm) for module in method.modules()):
        why = f"batch normalisation in the heads of {name} takes the images of a batch together"
    else:
        return
    remedy = f"encoder_parts={config.accumulate} in its place"
    if depends_on_batch(method.backbone):
        remedy += " (with an encoder that has no batch normalisation, such as a ViT)"
    console.print(
        f"accumulate={config.accumulate}: {why}, here {part} of {config.batch_size} at a time: "
        f"another objective than without accumulate; {remedy} saves as much memory and is the "
        f"same objective",
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
