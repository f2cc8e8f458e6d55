"""A map of the features in two dimensions, with the image of each point."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure
from markupsafe import Markup
from PIL import Image

from selfsight.batch import sides
from selfsight.embeddings.cluster import kmeans
from selfsight.embeddings.nearest import KEPT, project
from selfsight.report.page.charts import BAD, GOOD, chart, colour, embed
from selfsight.report.page.panel import Panel, as_uri, clean, render, webp
from selfsight.report.page.seen import Seen
from selfsight.report.page.subject import Subject

SEED = 0
LEAST = 10  # images of a map
CLUSTERS = 10  # of images without classes
NAMED = 20  # classes with a name in the legend
SHOWN = 96  # pixels of a thumbnail on the screen
BYTES = 900_000  # of all thumbnails
# (longest side of a thumbnail in pixels, quality of WebP), until all take no more than BYTES.
SIZES = ((64, 80), (64, 60), (48, 60), (40, 50), (32, 45), (24, 40), (16, 35))


class Colouring(NamedTuple):
    """One way to colour the points.

    Attributes:
        name: as the switch calls it; colours: of each point; key: (name, colour) of the legend;
        more: how many names the legend leaves out.
    """

    name: str
    colours: list[str]
    key: list[tuple[str, str]]
    more: int = 0


def map_panel(subject: Subject) -> Panel | None:
    """PCA, then t-SNE of the features; None where there are too few images."""
    seen = subject.seen
    if seen is None or len(seen.images) < LEAST:
        return None
    rows = seen.sample()
    features = F.normalize(seen.features[torch.from_numpy(rows)].float().cpu(), dim=1).numpy()
    places = project(features, "tsne", SEED)
    clusters = _clusters(features, len(seen.classes) or CLUSTERS)
    colourings = _colourings(seen, rows, clusters)
    sheet, columns, (width, height) = sprite(seen, rows)
    # Both sides: a thumbnail's own shape is rounded, and its place in the sheet must not be.
    sheet_size = f"{columns * width}px {math.ceil(len(rows) / columns) * height}px"
    data = {
        "x": np.round(places[:, 0], 3),
        "y": np.round(places[:, 1], 3),
        "left": -width * (np.arange(len(rows)) % columns),
        "top": -height * (np.arange(len(rows)) // columns),
        "name": [str(clean(name)) for name in seen.names(seen.images, rows)],
        "about": _about(seen, rows),
        **{f"colour{n}": found.colours for n, found in enumerate(colourings)},
    }
    html = render(
        "map.html",
        chart=embed("map", [_drawn(data, sheet_size, (width, height))], "wide"),
        colourings=colourings,
        sheet=Markup(sheet),
        sheet_size=sheet_size,
        width=width,
        height=height,
        small=max(sides(seen.size)) <= SHOWN // 2,
    )
    part = f"{len(rows):,} of {seen.total:,}" if len(rows) < seen.total else "All"
    note = (
        f"{part} {seen.split} images; near points are images with similar features (PCA to at most "
        f"{KEPT} dimensions, then t-SNE, seed {SEED}). Distances between far groups mean "
        f"nothing. Point at one, or tap it, to see it."
    )
    return Panel("map", "Map of the features", html, note)


def _clusters(features: np.ndarray, count: int) -> np.ndarray:
    """(N,) the k-means cluster of each image, numbered by size, the largest first."""
    found = kmeans(features, min(count, len(features) // 2), SEED)
    order = np.argsort(-np.bincount(found), kind="stable")
    return np.argsort(order, kind="stable")[found]


def _colourings(seen: Seen, rows: np.ndarray, clusters: np.ndarray) -> list[Colouring]:
    found = []
    if seen.labels is not None:
        found.append(_by_number("class", seen.labels[rows], seen.classes))
    names = [f"cluster {n + 1}" for n in range(int(clusters.max()) + 1)]
    found.append(_by_number("cluster", clusters, names))
    if seen.right is not None:
        words = [("right", GOOD), ("wrong", BAD)]
        colours = np.where(seen.right[rows], GOOD, BAD).tolist()
        found.append(Colouring("right or wrong (kNN, k = 20)", colours, words))
    return found


def _by_number(name: str, numbers: np.ndarray, names: Sequence[str]) -> Colouring:
    present = sorted(set(numbers.tolist()))
    key = [(names[n], colour(n)) for n in present[:NAMED]]
    return Colouring(name, [colour(n) for n in numbers.tolist()], key, len(present) - len(key))


def _about(seen: Seen, rows: np.ndarray) -> list[str]:
    """What is said of each image: its class, and another one that kNN gives it."""
    if seen.labels is None:
        return [""] * len(rows)
    found = []
    for row in rows.tolist():
        true = str(clean(seen.classes[seen.labels[row]]))
        wrong = seen.right is not None and not seen.right[row]
        taken = f", taken for {clean(seen.classes[int(seen.predicted[row])])}" if wrong else ""
        found.append(f"{true}{taken}")
    return found


def sprite(seen: Seen, rows: np.ndarray) -> tuple[str, int, tuple[int, int]]:
    """All thumbnails as one picture of at most BYTES.

    Returns: a data URI; its columns; width and height of a thumbnail on the screen, in pixels.
    """
    columns = math.ceil(math.sqrt(len(rows)))
    finest = min(SIZES[0][0], max(sides(seen.size)))
    pictures = list(seen.pictures(seen.images, rows, finest))
    for side, quality in SIZES:
        content = webp(_sheet(pictures, columns, min(side, finest)), quality)
        if len(content) <= BYTES:
            break
    height, width = pictures[0].shape[:2]
    scale = SHOWN / max(height, width)
    return as_uri(content), columns, (round(width * scale), round(height * scale))


def _sheet(pictures: list[np.ndarray], columns: int, side: int) -> np.ndarray:
    """Pictures of one shape, row by row, each with its longer side reduced to `side` pixels."""
    height, width = pictures[0].shape[:2]
    scale = min(1.0, side / max(height, width))
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    sheet = np.zeros((math.ceil(len(pictures) / columns) * h, columns * w, 3), np.uint8)
    for n, pixels in enumerate(pictures):
        top, left = n // columns * h, n % columns * w
        small = Image.fromarray(pixels).resize((w, h), Image.Resampling.BOX)
        sheet[top : top + h, left : left + w] = small
    return sheet


def _drawn(data: dict[str, object], sheet_size: str, shown: tuple[int, int]) -> figure:
    """The points; one under the pointer shows its part of the sheet, the value of --sprite."""
    found = chart(520, tools="pan,box_zoom,tap,reset", name="map")
    found.axis.visible = False
    found.grid.visible = False
    points = found.scatter(
        "x",
        "y",
        source=ColumnDataSource(data),
        size=9 if len(data["about"]) < 1000 else 6,
        fill_color="colour0",
        line_color=None,
        fill_alpha=0.8,
        hover_fill_alpha=1.0,
        nonselection_fill_alpha=0.8,
        selection_line_color="#808080",
        hover_line_color="#808080",
        name="points",
    )
    tip = _TIP.format(width=shown[0], height=shown[1], sheet=sheet_size)
    found.add_tools(HoverTool(renderers=[points], tooltips=tip, limit=1, visible=False))
    return found


# Numbers and @fields alone are put in; Bokeh escapes the fields.
_TIP = """
<div style="max-width:220px;overflow-wrap:anywhere">
<div class="thumbnail" style="width:{width}px;height:{height}px;background-image:var(--sprite);
background-size:{sheet};background-position:@left{{0}}px @top{{0}}px;
image-rendering:var(--sprite-rendering)"></div>
<div style="font-weight:600">@about</div><div style="opacity:0.75">@name</div></div>
"""
