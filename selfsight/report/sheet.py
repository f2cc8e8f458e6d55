"""A contact sheet: each row an image and its views, as the network gets them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from selfsight.data.images import center_box, cut
from selfsight.files import write_atomically
from selfsight.logging.log import console
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.job import training_images
from selfsight.train.loader import ViewLoader, make_loader
from selfsight.views.ops import augment

GAP, SMALLEST = 4, 64  # pixels between pictures; smaller views are enlarged to this
MARGIN = 3  # gaps between the originals and the views
LINE = 13  # pixels of a line of text


def contact_sheet(loader: ViewLoader, rows: int, epochs: int = 1) -> Image.Image:
    """The pictures of `view_pictures` as one image."""
    return paste(*view_pictures(loader, rows, epochs))


def view_pictures(
    loader: ViewLoader, rows: int, epochs: int = 1
) -> tuple[list[list[np.ndarray]], int]:
    """The first `rows` images of epoch 0 and their views in the first `epochs` epochs.

    A drawn view is the tensor that the method would get, before normalisation.
    Returns: for each image (h, w, 3) uint8 the image and its views; the longest side of a view, or
        SMALLEST if that is more.
    """
    indices = loader.indices(0)[:rows]
    views = [view for e in range(epochs) for view in loader.batch_of(e, indices).views]
    side = max(SMALLEST, max(max(view.shape[2:]) for view in views))
    scale, shift = (torch.tensor(v).view(-1, 1, 1) for v in reversed(loader.normalization))
    pictures = []
    for row, i in enumerate(indices.tolist()):
        _, image = loader.images.decode(i)
        original = reduced(image, side, all(v.shape[2] == v.shape[3] for v in views))
        shown = [(view[row].cpu() * scale + shift).clamp(0, 1) for view in views]
        pictures.append([as_picture(x) for x in (original, *shown)])
    return pictures, side


def reduced(image: np.ndarray, side: int, square: bool) -> Tensor:
    """An image as floats (C, h, w) of at most `side` pixels: its central square, or all of it."""
    height, width, _ = image.shape
    box = center_box(height, width, 1.0) if square else [0, 0, height, width]
    scale = min(1.0, side / max(box[2:]))
    down, across = (max(1, round(scale * pixels)) for pixels in box[2:])
    return augment.as_floats(cut(image, box, (down, across))[None])[0]


def as_picture(x: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8: of more than three channels the first three, of
    fewer the first as gray."""
    bands = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
    return (bands * 255).round().byte().permute(1, 2, 0).numpy()


def paste(
    pictures: list[list[np.ndarray]],
    side: int,
    captions: list[list[list[str]]] | None = None,
    margin: int = MARGIN,
) -> Image.Image:
    """A grid on white, the originals in front; small pictures grow by whole factors.

    Args:
        captions: lines of text below each picture, cut where they are wider than it.
        margin: gaps between the first column and the others.
    """
    texts = max((len(lines) for row in captions or [] for lines in row), default=0)
    across, down = side + GAP, side + GAP + texts * LINE
    columns = max(map(len, pictures))
    size = columns * across + (margin + 1) * GAP, len(pictures) * down + GAP
    sheet = Image.new("RGB", size, "white")
    for row, line in enumerate(pictures):
        for column, pixels in enumerate(line):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            factor = max(1, side // max(picture.size))
            picture = picture.resize((picture.width * factor, picture.height * factor), 0)
            left = GAP + column * across + (margin * GAP if column else 0)
            sheet.paste(picture, (left, GAP + row * down))
            if captions:
                _write(sheet, captions[row][column], left, GAP + row * down + side, side)
    return sheet


def _write(sheet: Image.Image, lines: list[str], left: int, top: int, width: int) -> None:
    """Lines of text; of one that is too long the beginning and the end."""
    font, draw = ImageFont.load_default(size=LINE - 3), ImageDraw.Draw(sheet)
    for n, text in enumerate(lines):
        shown, kept = text, len(text)
        while kept > 2 and font.getlength(shown) > width:
            kept -= 1
            shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        draw.text((left, top + n * LINE), shown, fill="black", font=font)


def draw_views(config: RunConfig, output: Path, rows: int, epochs: int) -> None:
    """Write a PNG file that shows the first images of epoch 0 and their views: of images with more
    than three channels the first three, of two the first, which a line says.

    Args:
        rows: images, one in each row.
        epochs: how many epochs' views to show.

    >>> config = selfsight.compose("digits/simclr").config
    >>> draw_views(config, Path("views.png"), rows=4, epochs=2)
    """
    images = training_images(config, torch.device("cpu"))
    loader = make_loader(config.model_copy(update={"batch_size": min(rows, len(images))}), images)
    channels = config.data.channels
    if channels not in (1, 3):
        shown = "the first three, as red, green and blue" if channels > 3 else "the first"
        console.print(f"Of {channels} channels the sheet shows {shown}")
    sheet = contact_sheet(loader, rows, epochs)
    write_atomically(output, lambda path: sheet.save(path, "PNG"))
