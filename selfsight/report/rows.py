"""Collect cells (one pretraining each) into rows (one method on one data set over its seeds), with
means, intervals and paired differences."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from selfsight.errors import UserError
from selfsight.report.render import GRID
from selfsight.report.statistics import SAME, Paired, holm, paired

COLUMNS = {name: metric.title for name, metric in GRID.items()}
MAIN = ("linear_top1", "augmented_top1", "knn")  # the first that was measured ranks the rows
FLOORS = ("untrained", "start", "pixels")  # baselines, not methods


@dataclass(frozen=True)
class Cell:
    """One pretraining with its evaluations.

    Attributes:
        method: its name, or 'untrained' (the encoder before its first step, had it started at
            random), 'start' (what it started from), or 'pixels', whose backbone is ''.
        metrics: a name of COLUMNS -> accuracy in [0, 1]; None or absent if not measured. All
            values are used, also those of a cell with an error: give no value of an unfinished one.
        minutes, memory_mib, images_per_second: of pretraining; memory at its peak.
        error: why the cell is unfinished.
    """

    data: str
    method: str
    backbone: str
    seed: int
    metrics: dict[str, float | None]
    minutes: float | None
    memory_mib: float | None
    images_per_second: float | None
    error: str | None = None

    def __post_init__(self) -> None:
        for column, value in self.metrics.items():
            if column not in COLUMNS or not (value is None or 0 <= value <= 1):
                raise ValueError(
                    f"{self}: {column}={value} is not an accuracy in [0, 1] of a known column"
                )


@dataclass(frozen=True)
class Row:
    """A method with a backbone on a data set, over its seeds.

    Attributes:
        cells: one for each seed, in the order of the seeds.
        main: the column that ranks the rows of this data set; None if none of MAIN was measured.
        mark: by `main`: 'best' highest mean; '=' not significantly different from the best: the
            95 % interval of the paired difference includes 0; '?' unknown: fewer than two common
            seeds, or no spread;
            '' below the best.
        notes: a sentence if the row is not better than the untrained encoder, than what it started
            from, or than the pixels.
        points_per_minute: gain of pretraining in `main`, see `_points_per_minute`.
    """

    data: str
    method: str
    backbone: str
    cells: tuple[Cell, ...]
    main: str | None
    mark: str = ""
    notes: tuple[str, ...] = ()
    points_per_minute: float | None = None

    @property
    def name(self) -> str:
        return f"{self.method}/{self.backbone}" if self.backbone else self.method

    @property
    def failed(self) -> dict[int, str]:
        """{seed: reason} of the unfinished cells."""
        return {cell.seed: cell.error for cell in self.cells if cell.error is not None}

    @property
    def finished(self) -> int:
        """n, the seeds without an error."""
        return len(self.cells) - len(self.failed)

    def values(self, column: str | None) -> dict[int, float]:
        """{seed: accuracy} of a column."""
        found = {cell.seed: cell.metrics.get(column) for cell in self.cells}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, column: str | None) -> float | None:
        values = self.values(column)
        return fmean(values.values()) if values else None

    def cost(self, what: str) -> float | None:
        """Mean 'minutes' or 'images_per_second', highest 'memory_mib' over the cells with one."""
        found = [getattr(cell, what) for cell in self.cells if getattr(cell, what) is not None]
        if not found:
            return None
        return max(found) if what == "memory_mib" else fmean(found)


@dataclass(frozen=True)
class Pair:
    """The difference a - b of two rows in a column, with its p-value corrected for all pairs.

    Attributes:
        holm: p corrected over the `family` of all pairs of rows of this data set and column that
            have a p-value at all.
    """

    column: str
    a: Row
    b: Row
    difference: Paired
    holm: float | None
    family: int


def rows(cells: Iterable[Cell]) -> list[Row]:
    """The rows by data set, best first, the untrained encoder and pixels last.

    Raises: ValueError if a data set, method, backbone and seed occur twice.
    """
    grouped: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for cell in cells:
        seeds = grouped.setdefault((cell.data, cell.method, cell.backbone), {})
        if cell.seed in seeds:
            raise ValueError(f"two cells for one seed: {cell} and {seeds[cell.seed]}")
        seeds[cell.seed] = cell
    measured = {
        (cell.data, column)
        for seeds in grouped.values()
        for cell in seeds.values()
        for column, value in cell.metrics.items()
        if value is not None
    }
    found = []
    for (data, method, backbone), seeds in grouped.items():
        main = next((column for column in MAIN if (data, column) in measured), None)
        found.append(Row(data, method, backbone, tuple(seeds[s] for s in sorted(seeds)), main))
    found.sort(key=_rank)
    return [_judged(row, [r for r in found if r.data == row.data]) for row in found]


def pairs(found: list[Row], column: str) -> list[Pair]:
    """All pairs of the rows of one data set that share a seed in the column, Holm-corrected."""
    tried = [(a, b, paired(a.values(column), b.values(column))) for a, b in combinations(found, 2)]
    tested = [difference.p for _, _, difference in tried if difference.p is not None]
    corrected = iter(holm(tested))
    return [
        Pair(column, a, b, d, None if d.p is None else next(corrected), len(tested))
        for a, b, d in tried
        if d.n
    ]


def compare_rows(cells: Iterable[Cell], a: str, b: str, column: str) -> str:
    """One line: the difference of two rows in a column, its interval, p and Holm-corrected p.

    Args:
        a, b: method, method/backbone, data/method or data/method/backbone.
    Raises: UserError for a name that fits no row or several, and for rows of two data sets.
    """
    found = rows(cells)
    if column not in COLUMNS:
        raise UserError(f"'{column}': no such column. Known: {', '.join(COLUMNS)}")
    first, second = _named(found, a), _named(found, b)
    if first == second or first.data != second.data:
        raise UserError(f"'{a}' and '{b}' are not two rows of one data set")
    x, y = first.mean(column), second.mean(column)
    for row, mean in ((first, x), (second, y)):
        if mean is None:
            raise UserError(f"{row.data}/{row.name}: {column} was not measured")
    head = f"{first.data} {column}: {first.name} {100 * x:.1f}, {second.name} {100 * y:.1f}: "
    family = pairs([r for r in found if r.data == first.data], column)
    pair = next((p for p in family if {p.a.name, p.b.name} == {first.name, second.name}), None)
    if pair is None:
        return f"{head}no common seed, no claim"
    d = paired(first.values(column), second.values(column))
    seeds = " ".join(map(str, sorted(first.values(column).keys() & second.values(column).keys())))
    head += f"{points(d)} over seed {seeds}" if d.n == 1 else f"{points(d)} over seeds {seeds}"
    if d.p is None:
        return f"{head}: " + ("one seed, no claim" if d.n == 1 else "no spread, no claim")
    return f"{head}, paired p = {d.p:.2g} (Holm over {pair.family} pairs: {pair.holm:.2g})"


def points(difference: Paired) -> str:
    """A difference in points: '+1.2 ± 0.8 points, n = 3'."""
    half = "" if difference.half is None else f" ± {100 * difference.half:.1f}"
    return f"{100 * difference.mean:+.1f}{half} points, n = {difference.n}"


def _named(found: list[Row], name: str) -> Row:
    fitting = [
        row
        for row in found
        if name in (row.method, row.name, f"{row.data}/{row.method}", f"{row.data}/{row.name}")
    ]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{row.data}/{row.name}" for row in fitting or found)
    raise UserError(f"'{name}' fits {'several rows' if fitting else 'no row'}: {listed}")


def _rank(row: Row) -> tuple:
    mean = row.mean(row.main)
    floor = row.method in FLOORS
    return row.data, floor, math.inf if mean is None else -mean, row.method, row.backbone


def _judged(row: Row, among: list[Row]) -> Row:
    """The row with its marks, given all rows of its data set."""
    own = row.values(row.main)
    if not own:
        return row
    best = max((r for r in among if r.values(row.main)), key=lambda r: r.mean(row.main))
    if row is best:
        mark = "best" if len(own) > 1 else "?"
    else:
        gap = paired(best.values(row.main), own)
        mark = "?" if gap.half is None else "=" if gap.mean <= gap.half else ""
    floors = {name: _floor(row, among, name) for name in FLOORS if row.method not in FLOORS}
    notes = [_note(row, floor) for floor in floors.values() if floor]
    gained = _points_per_minute(row, floors.get("untrained"))
    return replace(row, mark=mark, notes=tuple(filter(None, notes)), points_per_minute=gained)


def _floor(row: Row, among: list[Row], name: str) -> Row | None:
    """The baseline of this backbone; pixels of any, as they have none."""
    fitting = [r for r in among if r.method == name and r.values(row.main)]
    own = [r for r in fitting if r.backbone == row.backbone]
    return next(iter(own or (fitting if name == "pixels" else [])), None)


def _note(row: Row, floor: Row) -> str:
    """A note if the row is not clearly better than the baseline, else None."""
    gap = paired(row.values(row.main), floor.values(row.main))
    if gap.mean is None:  # no common seed: only the means can be compared
        gap = replace(gap, mean=row.mean(row.main) - floor.mean(row.main))
    if gap.mean < SAME:
        return f"no better than {floor.method} ({points(gap)})"
    if gap.half is not None and gap.mean <= gap.half:
        return f"within seed noise of {floor.method} ({points(gap)})"
    return ""


def _points_per_minute(row: Row, untrained: Row | None) -> float | None:
    """Points of accuracy above the untrained encoder, by minutes of pretraining.

    Sums over the seeds for which all three are known. None without an untrained row: accuracy
    itself by the minute would be highest for an encoder that learned nothing in no time.
    """
    if untrained is None:
        return None
    before, after = untrained.values(row.main), row.values(row.main)
    known = [c for c in row.cells if c.seed in before and c.seed in after and c.minutes]
    minutes = sum(cell.minutes for cell in known)
    gained = sum(after[cell.seed] - before[cell.seed] for cell in known)
    return 100 * gained / minutes if known else None
