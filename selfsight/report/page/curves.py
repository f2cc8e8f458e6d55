"""Curves of the training from metrics.jsonl: small charts that zoom together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bokeh.models import (
    ColumnDataSource,
    DataRange1d,
    HoverTool,
    NumeralTickFormatter,
    PrintfTickFormatter,
)

from selfsight.report.page.charts import COLOURS, HEIGHT, chart, embed
from selfsight.report.page.panel import Panel, fragment
from selfsight.report.page.subject import Subject

MOST = 600  # points of a curve; of more records every n-th is drawn


class Curve(NamedTuple):
    """A chart: its title with the unit, the keys of metrics.jsonl, what each is called, whether
    they are fractions to show in percent."""

    title: str
    keys: dict[str, str]
    percent: bool = False


CURVES = (
    Curve("loss", {"loss": "loss"}),
    Curve(
        "accuracy on training images, %",
        {"knn": "kNN", "probe_top1": "online linear probe"},
        percent=True,
    ),
    Curve(
        "effective rank, dimensions",
        {"feature_rank": "features", "embedding_rank": "embeddings"},
    ),
    Curve(
        "standard deviation, 1 = spread out",
        {"feature_std": "features", "embedding_std": "embeddings"},
    ),
    Curve("learning rate", {"lr": "learning rate"}),
    Curve("speed, images/s", {"images_per_second": "images/s"}),
)


def curves_panel(subject: Subject) -> Panel | None:
    """Loss, accuracies, ranks, spread, rate and speed; None where nothing was logged."""
    shared = DataRange1d(range_padding=0.02)
    found, legends = [], []
    for curve in CURVES:
        series = {k: _points(subject.metrics, k) for k in curve.keys}
        series = {key: points for key, points in series.items() if points[0]}
        if series:
            found.append(_drawn(curve, series, shared))
            legends.append([(curve.keys[k], COLOURS[n]) for n, k in enumerate(series)])
    if not found:
        return None
    html = embed("curves", found, titles=_titles(legends, found))
    return Panel("curves", "Training", html, _note(subject))


def _titles(legends: Sequence[list[tuple[str, str]]], found: Sequence[Any]) -> list[Any]:
    """For each chart its title, and the colours of its lines where there are several."""
    source = (
        '{{ title }}<span class="keys-of-lines">{% for name, colour in lines %}'
        '<span class="key"><i style="background:{{ colour }}"></i>{{ name }}</span>{% endfor %}'
        "</span>"
    )
    return [
        fragment(source, title=figure.name, lines=[] if lines[0][0] in figure.name else lines)
        for figure, lines in zip(found, legends, strict=True)
    ]


def _points(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the records that have the key, thinned evenly; the last one stays."""
    pairs = [(r["epoch"], r[key]) for r in records if r.get(key) is not None and "epoch" in r]
    step = max(1, -(-len(pairs) // MOST))
    pairs = pairs[(len(pairs) - 1) % step :: step] if pairs else []
    return [x for x, _ in pairs], [y for _, y in pairs]


def _drawn(curve: Curve, series: dict[str, tuple[list[float], list[float]]], shared: Any) -> Any:
    """One chart; its name is its title."""
    found = chart(HEIGHT, x_range=shared, x_axis_label="epoch", name=curve.title)
    found.min_border_left = 56  # so that the frames of all charts begin at one place
    shown = "@y{0.0 %}" if curve.percent else "@y{0,0.[000]}"
    printf = "printf" if "lr" in series else "numeral"
    if "lr" in series:
        shown = "@y{%.2e}"
    for n, (key, (x, y)) in enumerate(series.items()):
        source = ColumnDataSource({"x": x, "y": y})
        line = found.line("x", "y", source=source, color=COLOURS[n], line_width=2)
        drawn = [line]
        if len(x) < 60:
            drawn.append(found.scatter("x", "y", source=source, color=COLOURS[n], size=5))
        tips = [(curve.keys[key], shown), ("epoch", "@x{0.0}")]
        how = {"mode": "vline", "visible": False, "formatters": {"@y": printf}}
        found.add_tools(HoverTool(renderers=drawn[:1], tooltips=tips, **how))
    if "lr" in series:
        found.yaxis.formatter = PrintfTickFormatter(format="%.1e")
    if curve.percent:
        found.yaxis.formatter = NumeralTickFormatter(format="0 %")
    return found


def _note(subject: Subject) -> str:
    parts = ["Every chart is over epochs, and a zoom in one zooms all."]
    keys = {key for record in subject.metrics for key in record}
    if "knn" in keys or "probe_top1" in keys:
        parts.append("The accuracies are of training images: they guide a training, and measure "
                     "nothing.")  # fmt: skip
    if "feature_rank" in keys:
        parts.append("A rank or a deviation that falls towards 0 is a collapse.")
    return " ".join(parts)
