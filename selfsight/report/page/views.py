"""Images beside the views that the method trains on."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from selfsight.data.images import Images
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.job import training_images
from selfsight.report.page.panel import Panel, picture, render
from selfsight.report.page.subject import Subject
from selfsight.report.sheet import view_pictures
from selfsight.train.folder import BAD_IMAGES
from selfsight.train.loader import make_loader

IMAGES = 6
COLUMNS = 10  # views of an image at most
SIDE = 128  # pixels of a picture at most


def views_panel(subject: Subject) -> Panel:
    """The first images of the first epoch and their views.

    Raises: UserError if the training images cannot be read.
    """
    here = {"data": subject.images, "run": str(subject.run)}  # the run may have been moved
    config = subject.config.model_copy(update=here)
    groups = sum(group.count for group in config.views)
    with TemporaryDirectory() as place:  # a broken image is replaced as in training, unrecorded
        bad = Path(place) / BAD_IMAGES
        pictures, epochs = _drawn(config, training_images(config, torch.device("cpu"), bad))
    shown = [
        {
            "image": _img(line[0], f"training image {n + 1}"),
            "views": [_img(x, f"view {k + 1} of it") for k, x in enumerate(line[1:][:COLUMNS])],
        }
        for n, line in enumerate(pictures)
    ]
    each = f"{groups} view{'s' if groups > 1 else ''} of each image in an epoch"
    more = f"; the first {COLUMNS} are shown" if groups > COLUMNS else ""
    spread = f"; {epochs} epochs are shown" if epochs > 1 else ""
    channels = config.data.channels
    bands = ""
    if channels not in (1, 3):
        which = "first three of the" if channels > 3 else "first of the"
        bands = f" Of the channels the pictures show the {which} {channels}."
    note = (
        f"On the left a training image, beside it what the method gets in its place: {each}"
        f"{spread}{more}.{bands}"
    )
    return Panel("views", "Views", render("views.html", rows=shown), note)


def _drawn(config: RunConfig, images: Images) -> tuple[list[list[np.ndarray]], int]:
    """Each image before its views, and of how many epochs these are."""
    rows = min(IMAGES, len(images))
    loader = make_loader(config.model_copy(update={"batch_size": rows, "accumulate": 1}), images)
    epochs = max(1, min(4, COLUMNS // sum(group.count for group in config.views)))
    return view_pictures(loader, rows, epochs)[0], epochs


def _img(pixels: np.ndarray, alt: str) -> str:
    step = max(1, -(-max(pixels.shape[:2]) // SIDE))
    height, width = (side // step * step for side in pixels.shape[:2])
    whole = pixels[:height, :width].reshape(height // step, step, width // step, step, 3)
    return picture(whole.mean((1, 3)).round().astype(np.uint8), alt, least=64, quality=70)
