"""Charts of a grid: accuracy over minutes of pretraining, and paired differences."""

from bokeh.models import ColumnDataSource, DataRange1d, HoverTool, Span
from bokeh.plotting import figure
from markupsafe import Markup

from selfsight.report.legend import label
from selfsight.report.page.charts import BAD, GOOD, chart, colour, labels
from selfsight.report.page.panel import clean, fragment
from selfsight.report.render import ABSENT, number
from selfsight.report.rows import COLUMNS, Row, pairs, points
from selfsight.report.statistics import Paired, interval

NEUTRAL = "#8c8c8c"  # visible on white and on near black
LONGEST = 24  # characters of a name beside a difference; the whole name is shown on hover
LINE = 24  # pixels of a row of the differences
HEIGHT = 260  # of the chart of costs

_KEY = (
    "{{ title }}{% for name, colour in key %} "
    '<span class="key"><i style="background:{{ colour }}"></i>{{ name }}</span>{% endfor %}'
)


def pareto(group: list[Row]) -> list[Row]:
    """The rows that no other row beats in accuracy and minutes together, the cheapest first.

    A row is left out if another is at least as accurate and at most as long, and better in one of
    the two; rows without an accuracy or minutes take no part.
    """
    known = [r for r in group if r.values(r.main) and r.cost("minutes") is not None]

    def beats(a: Row, b: Row) -> bool:
        x, y = (a.cost("minutes"), -a.mean(a.main)), (b.cost("minutes"), -b.mean(b.main))
        return x != y and x[0] <= y[0] and x[1] <= y[1]

    left = [row for row in known if not any(beats(other, row) for other in known)]
    return sorted(left, key=lambda row: (row.cost("minutes"), -row.mean(row.main)))


def cost_chart(group: list[Row]) -> tuple[figure, Markup] | None:
    """Accuracy over the time of pretraining with its intervals, the Pareto set on a line, baselines
    as dashed lines; and a title with the colours. None if no row has both."""
    main = group[0].main
    front = pareto(group)
    if not front:
        return None
    measured = [row for row in group if row.values(main)]
    unit, factor = _unit(max(row.cost("minutes") or 0 for row in measured))
    found = chart(HEIGHT, x_axis_label=f"{unit} of pretraining", x_range=DataRange1d(start=0))
    places = [(factor * row.cost("minutes"), 100 * row.mean(main)) for row in front]
    x, y = zip(*places, strict=True)
    found.line("x", "y", source=ColumnDataSource({"x": x, "y": y}), color=NEUTRAL, line_width=2)
    key = []
    for n, row in enumerate(measured):
        name, shade, minutes = label(row, group), colour(n), row.cost("minutes")
        if minutes is None:
            _draw_baseline(found, row, shade)
            key.append((f"{name}, dashed", shade))
        else:
            _draw_row(found, row, name, shade, (factor * minutes, unit), row in front)
            key.append((name, shade))
    title = f"{COLUMNS[main]} in %, over {unit} of pretraining; large dots: no row is better in "
    return found, fragment(_KEY, title=title + "both", key=key)


def _unit(minutes: float) -> tuple[str, float]:
    """The unit in which the longest time reads best, and how many of it a minute has."""
    if minutes < 2:
        return "seconds", 60.0
    return ("minutes", 1.0) if minutes < 300 else ("hours", 1 / 60)


def _draw_baseline(found: figure, row: Row, shade: str) -> None:
    place = 100 * row.mean(row.main)
    line = Span(location=place, dimension="width", line_color=shade, line_dash="dashed")
    found.add_layout(line)


def _draw_row(
    found: figure, row: Row, name: str, shade: str, cost: tuple[float, str], in_front: bool
) -> None:
    """A point with its interval; larger in the Pareto set."""
    mean, half = interval(list(row.values(row.main).values()))
    source = ColumnDataSource(
        {
            "x": [cost[0]],
            "y": [100 * mean],
            "low": [100 * (mean - (half or 0))],
            "high": [100 * (mean + (half or 0))],
            "name": [str(clean(name))],
            "shown": [f"{number(mean, half)} %, n = {len(row.values(row.main))}"],
        }
    )
    found.segment("x", "low", "x", "high", source=source, color=shade, line_width=2)
    dot = found.scatter("x", "y", source=source, color=shade, size=13 if in_front else 8)
    tips = [("row", "@name"), (COLUMNS[row.main], "@shown"), (cost[1], "@x{0,0.[00]}")]
    found.add_tools(HoverTool(renderers=[dot], tooltips=tips, visible=False))


def forest_chart(group: list[Row]) -> tuple[figure, str] | None:
    """The difference of each row from the best one in points, with its 95 % interval and p
    corrected by Holm; and a title. None without a second row that shares a seed with the best."""
    main = group[0].main
    measured = [row for row in group if row.values(main)]
    if len(measured) < 2:
        return None
    best = max(measured, key=lambda row: row.mean(main))
    found: list[tuple[Row, Paired, float | None]] = []
    for pair in pairs(group, main):
        if best in (pair.a, pair.b):
            other = pair.b if pair.a is best else pair.a
            sign = -1 if pair.a is best else 1
            difference = pair.difference
            turned = Paired(sign * difference.mean, difference.half, difference.p, difference.n)
            found.append((other, turned, pair.holm))
    if not found:
        return None
    found.sort(key=lambda f: f[1].mean)  # the first is drawn lowest
    names = [label(row, group) for row, _, _ in found]
    tested = [_tested(holm) for _, _, holm in found]
    drawn = _forest(names, tested, [difference for _, difference, _ in found])
    title = f"difference from {label(best, group)} in {COLUMNS[main]}, points, paired by seed, "
    return drawn, str(clean(title + "with its 95 % interval"))


def _tested(p: float | None) -> str:
    return "no test" if p is None else f"Holm p {shown_p(p)}"


def shown_p(p: float | None) -> str:
    """A p-value, '-' for none.

    >>> shown_p(0.0312), shown_p(1e-7), shown_p(None)
    ('0.031', '< 0.0001', '-')
    """
    if p is None:
        return ABSENT
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _forest(names: list[str], tested: list[str], differences: list[Paired]) -> figure:
    height = LINE * len(names) + 60
    found = chart(height, y_range=(-0.6, len(names) - 0.4), x_axis_label="points")
    short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    labels(found.yaxis, [f"{name}  {p}" for name, p in zip(short, tested, strict=True)])
    found.add_layout(Span(location=0, dimension="height", line_color=NEUTRAL, line_width=1))
    shades = [_shade(difference) for difference in differences]
    marks = zip(shades, differences, strict=True)
    source = ColumnDataSource(
        {
            "y": list(range(len(names))),
            "x": [100 * d.mean for d in differences],
            "low": [100 * (d.mean - (d.half or 0)) for d in differences],
            "high": [100 * (d.mean + (d.half or 0)) for d in differences],
            "shade": shades,
            "fill": [shade if d.half else None for shade, d in marks],
            "name": [str(clean(name)) for name in names],
            "shown": [points(d) for d in differences],
            "tested": tested,
        }
    )
    found.segment("low", "y", "high", "y", source=source, color="shade", line_width=2)
    dots = found.scatter(
        "x", "y", source=source, size=9, line_color="shade", fill_color="fill", line_width=2
    )
    tips = [("row", "@name"), ("difference", "@shown"), ("", "@tested")]
    found.add_tools(HoverTool(renderers=[dots], tooltips=tips, visible=False))
    return found


def _shade(difference: Paired) -> str:
    """Gray where nothing can be claimed."""
    if difference.half is None or abs(difference.mean) <= difference.half:
        return NEUTRAL
    return GOOD if difference.mean > 0 else BAD
