"""Which classes are taken for which others."""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure

from selfsight.report.page.charts import BAD, GOOD, chart, embed, labels
from selfsight.report.page.panel import Panel, clean, render
from selfsight.report.page.seen import K
from selfsight.report.page.subject import Subject

MOST = 30  # classes of the matrix
WORST = 10  # classes of the table
WRITTEN = 12  # classes up to which the numbers are written into the cells
LONGEST = 16  # characters of a class at an axis


class Confused(NamedTuple):
    """A class, how many images it has, how many of them get it, and the class that most of the
    others get, with their number; None where all get it."""

    name: str
    images: int
    right: int
    taken_for: str | None
    times: int


def confusion_panel(subject: Subject) -> Panel | None:
    """The matrix and the worst classes; None without labels."""
    seen = subject.seen
    if seen is None or seen.labels is None or len(seen.classes) < 2:
        return None
    counts = matrix(seen.labels, seen.predicted.numpy(), len(seen.classes))
    kept = kept_classes(counts)
    worst = worst_classes(counts, seen.classes)
    drawn = embed("confusion", [_drawn(counts, kept, seen.classes)], "wide square")
    html = render("confusion.html", chart=drawn, worst=worst)
    right, total = int(np.trace(counts)), int(counts.sum())
    part = ""
    if len(kept) < int((counts.sum(1) > 0).sum()):
        part = f" Of {len(seen.classes):,} classes the {len(kept)} worst are shown."
    note = (
        f"Rows: the class of {seen.split} images; columns: what kNN (k = {K}) takes them for. "
        f"{right:,} of {total:,} are right.{part}"
    )
    return Panel("confusion", "Mistakes by class", html, note)


def matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) how many images of class i get class j.

    >>> matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    flat = np.bincount(truth * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def worst_classes(counts: np.ndarray, classes: list[str]) -> list[Confused]:
    """Of the classes with mistakes those with the lowest share of right images, lowest first."""
    found = []
    for n in _by_recall(counts)[:WORST].tolist():
        others = counts[n].copy()
        others[n] = 0
        if others.any():
            most = int(others.argmax())
            right, images = int(counts[n, n]), int(counts[n].sum())
            found.append(Confused(classes[n], images, right, classes[most], int(others[most])))
    return found


def _by_recall(counts: np.ndarray) -> np.ndarray:
    """The classes that have images, the lowest share of right ones first."""
    images = counts.sum(1)
    present = np.flatnonzero(images)
    recall = counts.diagonal()[present] / images[present]
    return present[np.argsort(recall, kind="stable")]


def kept_classes(counts: np.ndarray) -> np.ndarray:
    """The classes of the matrix in their own order: those with images, or get some; of many the
    worst."""
    if len(counts) <= MOST:
        return np.flatnonzero(counts.sum(0) + counts.sum(1))
    return np.sort(_by_recall(counts)[:MOST])


def _drawn(counts: np.ndarray, kept: np.ndarray, classes: list[str]) -> figure:
    names = [_short(classes[n]) for n in kept]
    found = chart(
        160 + min(420, 34 * len(kept)),
        tools="",
        x_axis_label="taken for",
        y_axis_label="class",
        x_range=Range1d(-0.5, len(kept) - 0.5),
        y_range=Range1d(len(kept) - 0.5, -0.5),
        name="confusion",
    )
    found.grid.visible = False
    found.outline_line_color, found.outline_line_alpha = "#808080", 0.4
    labels(found.xaxis, names)
    labels(found.yaxis, names)
    found.xaxis.major_label_orientation = 0.9 if max(map(len, names)) > 3 else "horizontal"
    source = ColumnDataSource(_cells(counts, kept, classes))
    cells = found.rect(
        "x", "y", 0.96, 0.96, source=source, fill_color="colour", fill_alpha="alpha",
        line_color=None,
    )  # fmt: skip
    if len(kept) <= WRITTEN:
        found.text(
            "x", "y", "text", source=source, text_align="center", text_baseline="middle",
            text_font_size="12px", name="written",
        )  # fmt: skip
    tip = "<div>@true: @count of @images taken for @taken (@share{0.0 %})</div>"
    found.add_tools(HoverTool(renderers=[cells], tooltips=tip, visible=False))
    return found


def _cells(counts: np.ndarray, kept: np.ndarray, classes: list[str]) -> dict[str, list[Any]]:
    rows, columns = np.nonzero(counts[np.ix_(kept, kept)])
    pairs = [(kept[r], kept[c]) for r, c in zip(rows, columns, strict=True)]
    found = [int(counts[pair]) for pair in pairs]
    images = counts.sum(1)
    share = [float(counts[i, j] / images[i]) for i, j in pairs]
    return {
        "x": columns.tolist(),
        "y": rows.tolist(),
        "true": [str(clean(classes[i])) for i, _ in pairs],
        "taken": [str(clean(classes[j])) for _, j in pairs],
        "count": found,
        "text": [str(n) for n in found],
        "images": [int(images[i]) for i, _ in pairs],
        "share": [round(value, 4) for value in share],
        "colour": [GOOD if i == j else BAD for i, j in pairs],
        "alpha": [round(0.15 + 0.7 * value**0.5, 3) for value in share],
    }


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
