"""How metrics, numbers and tables look, the same in every command."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.box import Box
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from selfsight.errors import printable

ABSENT = "-"


class Metric(NamedTuple):
    """A metric of tables; percent: a fraction in [0, 1], shown in percent."""

    title: str
    percent: bool = True


# By their names in results.json, in the order of a protocol's table.
RESULTS = {
    "k20": Metric("kNN k=20"),
    "k200": Metric("kNN k=200"),
    "top1": Metric("top-1"),
    "top5": Metric("top-5"),
    "shots1": Metric("1 label/class"),
    "shots5": Metric("5 labels/class"),
    "validation_top1": Metric("validation"),
    "chosen_lr_factor": Metric("rate chosen", percent=False),
}
# By their names in the table of a grid, in its order.
GRID = {
    "online": Metric("online"),
    "linear_top1": Metric("lin. top-1"),
    "linear_top5": Metric("lin. top-5"),
    "knn": Metric("kNN k=20"),
    "knn200": Metric("kNN k=200"),
    "augmented_top1": Metric("aug. top-1"),
    "augmented_top5": Metric("aug. top-5"),
    "finetune_1": Metric("1 % labels"),
    "finetune_10": Metric("10 % labels"),
    "finetune_100": Metric("all labels"),
}


def is_accuracy(name: str) -> bool:
    """Whether a metric of results.json is a fraction of images: k, top and shots of any number."""
    known = RESULTS.get(name)
    return known.percent if known else re.fullmatch(r"(top|k|shots)\d+", name) is not None


def number(value: float | None, spread: float | None = None, percent: bool = True) -> str:
    """'91.2 ± 0.4' in percent, else '0.0312'; '-' for None."""
    if value is None:
        return ABSENT
    scale, digits = (100, ".1f") if percent else (1, ".4g")
    text = f"{scale * value:{digits}}"
    return text if spread is None else f"{text} ± {scale * spread:{digits}}"


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    box: Box | None = None,
    fixed: int = 0,
    right: bool = False,
    styles: Sequence[StyleType | None] | None = None,
    caption: str | None = None,
) -> Table:
    """A table of plain texts; square brackets are not read as markup.

    Args:
        box: style of the lines; None: no lines.
        fixed: number of first columns whose text is never wrapped.
        right: align all columns but the first to the right, for numbers.
        styles: of each row.
    """
    frame: dict[str, Any] = {}
    if box is None or not box.top.strip():  # no lines around the table
        frame = {"show_edge": False, "pad_edge": False}
        frame["padding"] = (0, 1) if box is None else (0, 1, 0, 0)
    found = Table(box=box, caption=caption, caption_justify="left", **frame)
    for n, title in enumerate(titles):
        justify = "right" if right and n else "left"
        found.add_column(
            Text(printable(title)), justify=justify, no_wrap=n < fixed, overflow="fold"
        )
    rows = list(rows)
    for row, style in zip(rows, styles or [None] * len(rows), strict=True):
        found.add_row(*(Text(printable(cell)) for cell in row), style=style)
    return found
