"""Panels of a run whose encoder is a Vision Transformer: where it looks, what its patches hold, and
the pixels that its method predicts."""

from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from selfsight.batch import Normalization
from selfsight.errors import UserError
from selfsight.evaluate.features import plain_views
from selfsight.methods.method import Backbone
from selfsight.pretraining.config import read_run_config
from selfsight.report.page.panel import Panel, data_uri, fragment, render
from selfsight.report.page.patches import (
    as_colours,
    attention_maps,
    patch_features,
    vision_transformer,
)
from selfsight.report.page.reconstruction import predicts_pixels, reconstruct, trained_method
from selfsight.report.page.subject import Subject
from selfsight.report.sheet import as_picture
from selfsight.views.ops import augment

SHOWN = 8  # images in a panel
FEWER, FEW_HEADS = 6, 6  # images beside the maps of more heads than these
SIDE = 96  # pixels of a picture on the page, at least; twice as many at most

Picture = tuple[np.ndarray, str]  # (H, W, 3) uint8, and its caption


def panels_of(subject: Subject) -> list[Panel]:
    """The panels of a run, with images from all parts of the split that its page shows."""
    network, seen = subject.network, subject.seen
    if network is None or seen is None:
        return []
    count = min(SHOWN, len(seen.images))
    rows = np.linspace(0, len(seen.images) - 1, count).round().astype(np.int64)
    images = torch.cat(list(plain_views(seen.images, network.image_size, rows, network.resize)))
    normalization = Normalization(network.description["mean"], network.description["std"])
    return vit_panels(network.build().eval(), images, normalization, subject.run)


def vit_panels(
    encoder: nn.Module, images: Tensor, normalization: Normalization, run: Path | None = None
) -> list[Panel]:
    """The panels that the encoder has: none if it is no Vision Transformer of timm.

    Args:
        encoder: in eval mode.
        images: (B, C, h, w) float in [0, 1], as an evaluation shows them; the first 8 are drawn,
            beside the maps of more than 6 heads the first 6.
        normalization: of the encoder's input.
        run: its folder, for the pixels that MAE or SimMIM predicts.
    """
    vit = vision_transformer(encoder)
    if vit is None:
        return []
    images = images[:SHOWN].cpu()
    x = augment.normalize(images, *normalization)
    found = [_attention(vit, images, x), _components(vit, images, x)]
    if run is not None:
        found.append(_reconstruction(run, images, normalization))
    return [panel for panel in found if panel is not None]


def _attention(vit: Backbone, images: Tensor, x: Tensor) -> Panel | None:
    found = attention_maps(vit, x)
    if found is None:
        return None
    shown = SHOWN if found.maps.shape[1] <= FEW_HEADS else FEWER
    rows = []
    for image, heads in zip(images[:shown], found.maps[:shown], strict=True):
        maps = [heads.mean(0), *heads]
        names = ["mean", *(f"head {n}" for n in range(1, len(heads) + 1))]
        drawn = [
            (_heat(weights), f"{name}, {_peak(weights)}")
            for weights, name in zip(maps, names, strict=True)
        ]
        rows.append([(as_picture(image), "image"), *drawn])
    whose = "the class token pays to" if found.of_class_token else "all patches together pay to"
    note = (
        f"The attention that {whose} each patch in the last block, as the mean of the heads and "
        f"for each head: bright is much, and 5x says that the brightest patch gets five times the "
        f"mean of its map."
    )
    return Panel("attention", "Attention", _rows(rows, images), note)


def _components(vit: Backbone, images: Tensor, x: Tensor) -> Panel:
    colours, share = as_colours(patch_features(vit, x))
    rows = [
        [(as_picture(image), "image"), (_bytes(picture), "patches")]
        for image, picture in zip(images, colours, strict=True)
    ]
    note = (
        f"The features of the patches, their first three principal components as red, green and "
        f"blue ({100 * share:.0f} % of the variance): patches of one colour have similar "
        f"features, in all images alike."
    )
    return Panel("components", "Features of patches", _rows(rows, images), note)


def _reconstruction(run: Path, images: Tensor, normalization: Normalization) -> Panel | None:
    """What the method of the run predicts; a sentence if its checkpoint cannot be used."""
    config = read_run_config(run)
    if not predicts_pixels(config):
        return None
    title = "Predicted pixels"
    try:
        method, step = trained_method(run)
    except UserError as error:
        text = fragment("<p>Not drawn: {{ reason }}.</p>", reason=str(error))
        return Panel("reconstruction", title, text)
    found = reconstruct(method, images, normalization, config.seed)
    kinds = {
        "image": found.original,
        "seen": found.masked,
        "predicted": found.predicted,
        "both": found.composite,
    }
    rows = [
        [(as_picture(batch[b]), name) for name, batch in kinds.items()] for b in range(len(images))
    ]
    note = (
        f"After step {step:,}: the encoder sees an image without its gray patches, the decoder "
        f"predicts all patches but is trained on the gray ones, and the last picture has those as "
        f"predicted and the others as they are."
    )
    if found.scaled:
        note += (
            " The method predicts a patch relative to its own mean and standard deviation "
            "(method.norm_pix), which are taken from the image here."
        )
    return Panel("reconstruction", title, _rows(rows, images), note)


# Pictures -----------------------------------------------------------------------------------------


def _rows(rows: list[list[Picture]], images: Tensor) -> Markup:
    """Pictures with captions, all of the size in which the images are shown."""
    height, width = images.shape[2:]
    scale = SIDE / max(height, width)
    scale = max(1, round(scale)) if scale > 0.75 else 1 / max(1, int(1 / scale))
    size = round(width * scale), round(height * scale)
    shown = [
        [
            {
                "uri": data_uri(pixels, lossless=pixels.shape[1] < size[0]),
                "alt": f"{caption}, image {number}" if caption != "image" else f"image {number}",
                "caption": caption,
                "enlarged": pixels.shape[1] < size[0],
            }
            for pixels, caption in row
        ]
        for number, row in enumerate(rows, 1)
    ]
    return render("pictures.html", rows=shown, width=size[0], height=size[1])


def _bytes(picture: Tensor) -> np.ndarray:
    return (picture * 255).round().byte().numpy()


def _heat(weights: Tensor) -> np.ndarray:
    """(rows, columns), not negative -> (rows, columns, 3) uint8, from black to the largest."""
    from bokeh.palettes import Inferno256

    palette = np.array([[int(c[n : n + 2], 16) for n in (1, 3, 5)] for c in Inferno256], np.uint8)
    relative = weights / weights.max().clamp_min(torch.finfo(weights.dtype).tiny)
    return palette[_bytes(relative)]


def _peak(weights: Tensor) -> str:
    """The largest weight relative to the mean: '5x'."""
    return f"{float(weights.max() / weights.mean().clamp_min(1e-12)):.1f}x"
