"""Answers of a search, groups of near-duplicates and clusters: as text and as contact sheets."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from selfsight.embeddings.cluster import NOISE, Clustering
from selfsight.embeddings.duplicates import Group
from selfsight.embeddings.outputs import sheet_name
from selfsight.embeddings.search import Answer, Found
from selfsight.embeddings.table import Table
from selfsight.logging.log import Console
from selfsight.report.console import SHOWN, console
from selfsight.report.render import table
from selfsight.report.tiles import Pictures, Tile, draw_tiles

ACROSS = 8  # pictures in a line of a group or a cluster
CHAIN = 0.1  # of similarity below the threshold: such images are hardly alike
LINES = 25  # of a sheet of groups
WIDEST = 10_000  # characters of a line
NEAREST = 3  # lines of a cluster's sheet


def print_answers(found: Found) -> None:
    """Print the neighbours of each query as a table."""
    say = partial(console().print, soft_wrap=True)
    for answer in found.answers:
        itself = "" if answer.row is None else f" (row {answer.row} of the table, not counted)"
        say(f"{answer.query}{itself}")
        columns = {"label": found.table.labels, "split": found.table.splits}
        known = {name: column for name, column in columns.items() if column is not None}
        shown = [*known.values(), found.table.paths]
        pairs = zip(answer.rows, answer.similarities, strict=True)
        rows = [[f"{s:.4f}", str(row), *(str(c[row] or "") for c in shown)] for row, s in pairs]
        _print_unwrapped(("similarity", "row", *known, "path"), rows)
    print_recall(found)


def print_recall(found: Found, stderr: bool = False) -> None:
    """Say how much an approximate index finds."""
    if found.recall is not None:
        line = (
            f"The index finds {found.recall:.1%} of the nearest rows, measured on the table's own"
        )
        console(stderr).print(line, soft_wrap=True)


def _print_unwrapped(titles: Sequence[str], rows: list[list[str]]) -> None:
    """A table whose lines are as long as they must be, since paths are copied from it."""
    Console(width=WIDEST).print(table(titles, rows))


def print_lines(lines: Sequence[str], stderr: bool = False) -> None:
    """Print what was written, which the functions that draw give."""
    for line in lines:
        console(stderr).print(line, soft_wrap=True)


def draw_answers(found: Found, output: Path) -> list[str]:
    """A contact sheet: each query, and its neighbours with similarity, label and name.

    Returns: lines for `print_lines`: that it is written, and how many images are missing.
    """
    lines = [[_query(found.table, answer), *_neighbours(found, answer)] for answer in found.answers]
    pictures = Pictures(found.table)
    draw_tiles(pictures, lines, output, first_apart=True)
    return _written(output, pictures)


def _query(images: Table, answer: Answer) -> Tile:
    if answer.row is not None:
        return Tile(answer.row, ["query", *_caption(images, answer.row)])
    return Tile(Path(answer.query), ["query", Path(answer.query).name])


def _neighbours(found: Found, answer: Answer) -> list[Tile]:
    return [
        Tile(row, [f"{similarity:.4f}", *_caption(found.table, row)])
        for row, similarity in zip(answer.rows, answer.similarities, strict=True)
    ]


def _caption(images: Table, row: int) -> list[str]:
    """Label and split if there are some, and the name of the file."""
    columns = (images.labels, images.splits)
    words = [column[row] for column in columns if column is not None]
    return [" ".join(filter(None, words)), Path(images.paths[row]).name]


def _written(output: Path, pictures: Pictures) -> list[str]:
    gray = (
        f"{pictures.missing:,} images on '{output}' are gray: their files cannot be opened from "
        f"here"
    )
    return [*([gray] if pictures.missing else []), f"Wrote {output}"]


def print_groups(images: Table, groups: Sequence[Group], threshold: float) -> None:
    """Print how many groups there are, and the first of them."""
    say = partial(console().print, soft_wrap=True)
    inside = sum(map(len, groups))
    say(f"{_groups(len(groups))} of near-duplicates, {inside:,} of {len(images):,} images in them")
    if images.splits is not None:
        leaks = [len(group.leaks) for group in groups if len(group.leaks)]
        say(f"{_groups(len(leaks))} with leaks: {sum(leaks):,} images like one of another split")
    if images.labels is not None:
        say(f"{_groups(sum(group.mixed for group in groups))} with images of different labels")
    chains = sum(group.lowest < threshold - CHAIN for group in groups)
    if chains:
        say(
            f"{_groups(chains)} with images that only others link, one to the next, and that are "
            f"not alike; a higher --threshold parts them"
        )
    for number, group in enumerate(groups[:SHOWN]):
        marks = "".join([", leak" * (len(group.leaks) > 0), ", different labels" * group.mixed])
        say(f"group {number}: {len(group)} images, similarity {group.lowest:.4f} or more{marks}")
        for row in _leaks_first(group)[:ACROSS]:
            about = " ".join(filter(None, _caption(images, row)[:1]))
            say(f"  {images.paths[row]}{f' ({about})' if about else ''}")
        if len(group) > ACROSS:
            say(f"  ... and {len(group) - ACROSS:,} more")
    if len(groups) > SHOWN:
        say(f"... and {len(groups) - SHOWN:,} groups more")


def _groups(count: int) -> str:
    return f"{count:,} group{'s'[: count != 1]}"


def _leaks_first(group: Group) -> list[int]:
    return [*group.leaks.tolist(), *np.setdiff1d(group.rows, group.leaks).tolist()]


def draw_groups(images: Table, groups: Sequence[Group], output: Path) -> list[str]:
    """A contact sheet of the first groups, at most 8 images of each; small groups share a line.

    Returns: as `draw_answers`.
    """
    if not groups:
        return [f"No near-duplicates: '{output}' is not written"]
    lines: list[list[Tile]] = [[]]
    for number, group in enumerate(groups):
        rows = _leaks_first(group)[:ACROSS]
        if len(lines[-1]) + len(rows) > ACROSS:
            if len(lines) == LINES:
                break
            lines.append([])
        lines[-1] += [Tile(row, [f"group {number}", *_caption(images, row)]) for row in rows]
    pictures = Pictures(images)
    draw_tiles(pictures, lines, output, first_apart=False)
    return _written(output, pictures)


def print_clusters(images: Table, found: Clustering) -> None:
    """Print size, purity and most frequent label of each cluster, and the agreement with labels."""
    say = partial(console().print, soft_wrap=True)
    labelled = found.purity is not None
    titles = ("cluster", "images", *(("purity", "label") if labelled else ()), "nearest the centre")
    rows = []
    for cluster in found.clusters:
        name = "noise" if cluster.number == NOISE else str(cluster.number)
        purity = "-" if cluster.purity is None else f"{cluster.purity:.1%}"
        about = [purity, cluster.label or "-"] if labelled else []
        rows.append([name, f"{len(cluster):,}", *about, images.paths[cluster.rows[0]]])
    _print_unwrapped(titles, rows)
    if labelled:
        say(f"purity {found.purity:.1%}, NMI {found.nmi:.3f}, ARI {found.ari:.3f} against labels")
    else:
        say("The images have no labels, so purity, NMI and ARI are not known")


def draw_clusters(images: Table, found: Clustering, folder: Path) -> list[str]:
    """A contact sheet of each cluster in the folder, those nearest to the centre first.

    Returns: as `draw_answers`.
    """
    pictures = Pictures(images)
    for cluster in found.clusters:
        first = slice(NEAREST * ACROSS)
        shown = zip(cluster.rows[first], cluster.similarities[first], strict=True)
        tiles = [
            Tile(int(row), [f"{similarity:.4f}", *_caption(images, int(row))])
            for row, similarity in shown
        ]
        lines = [tiles[start : start + ACROSS] for start in range(0, len(tiles), ACROSS)]
        draw_tiles(pictures, lines, folder / sheet_name(cluster.number), first_apart=False)
    return _written(folder, pictures)
