"""Charts in the style of the page, as JSON that Bokeh draws in the browser without a request.

Colours of text, axes and grids are set by `templates/page.js` when a page is shown, since a canvas
does not follow the light or dark scheme by itself. Text of an axis that comes from a file must be
given to `labels`: Bokeh would read what stands between dollar signs as a formula.
"""

import json
from collections.abc import Sequence
from typing import Any

from bokeh.colors import HSL
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import Model, PlainText, WheelZoomTool
from bokeh.plotting import figure
from markupsafe import Markup

from selfsight.report.page.panel import clean, fragment

# After Okabe and Ito: distinct for most colour-blind readers, visible on white and on near black.
COLOURS = ("#2b83c9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
COLOURS += ("#a89b00", "#8c8c8c", "#7a5cc4", "#9a5b3c")
GOOD, BAD = "#009e73", "#d55e00"
HEIGHT = 200  # pixels of a small chart
FONT = "system-ui, sans-serif"


def colour(n: int) -> str:
    """The n-th colour: first those of COLOURS, then ones whose hues are far from each other.

    >>> colour(0), colour(10)
    ('#2b83c9', '#d22d2d')
    """
    if n < len(COLOURS):
        return COLOURS[n]
    n -= len(COLOURS)
    return HSL(round(n * 137.508) % 360, 0.65, (0.5, 0.68, 0.38)[n % 3]).to_rgb().to_hex()


def chart(height: int = HEIGHT, **options: Any) -> figure:
    """A figure as wide as its place, without a logo, on the page's own background.

    Args:
        height: in pixels.
        options: of `bokeh.plotting.figure`: x_range (the same object for figures that zoom
            together), x_axis_label, tools, ...
    """
    usual = {"tools": "pan,box_zoom,reset", "sizing_mode": "stretch_width", "min_border": 8}
    usual |= {"toolbar_inner": True}  # beside the frame it would take a column
    found = figure(height=height, **{**usual, **options})
    wheel = WheelZoomTool(dimensions="both", modifiers={"ctrl": True})  # a bare wheel scrolls
    found.add_tools(wheel)
    found.toolbar.logo = None
    found.toolbar.autohide = True
    found.toolbar.styles = {"background": "transparent"}
    found.background_fill_color = found.border_fill_color = None
    found.outline_line_color = None
    for axis in found.axis:
        axis.axis_label_text_font = axis.major_label_text_font = FONT
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.major_tick_line_color = axis.minor_tick_line_color = axis.axis_line_color = None
    return found


def labels(axis: Any, names: Sequence[str]) -> None:
    """Write names from files at the places 0, 1, 2, ... of an axis: as plain text, no formula."""
    axis.ticker = list(range(len(names)))
    axis.major_label_overrides = {n: PlainText(text=str(clean(x))) for n, x in enumerate(names)}


def embed(
    name: str,
    figures: Sequence[Model],
    classes: str = "charts",
    titles: Sequence[str | Markup] = (),
) -> Markup:
    """Figures as HTML; those of one call may share ranges.

    Args:
        name: unique in the page; the same figures under the same name give the same text.
        classes: of the element around them: `charts` (as many columns as fit) or `wide` (one).
        titles: above each chart, if given.
    """
    document = Document()
    for found in figures:
        document.add_root(found)
    tree = json.loads(serialize_json(document.to_json(deferred=False)))
    tree["title"] = ""
    tree = _renumbered(tree, name, {})
    places = {root["id"]: f"{name}-chart-{n}" for n, root in enumerate(tree["roots"])}
    text = json.dumps({"document": tree, "places": places}, separators=(",", ":"))
    return fragment(
        '<div class="{{ classes }}">{% for place in places %}<figure>'
        "{% if titles %}<figcaption>{{ titles[loop.index0] }}</figcaption>{% endif %}"
        '<div class="chart" id="{{ place }}"></div></figure>{% endfor %}</div>\n'
        '<script type="application/json" class="bokeh" id="{{ name }}-charts">{{ text }}</script>',
        classes=classes,
        name=name,
        places=list(places.values()),
        titles=list(titles),
        # No text in it can end the element or begin a comment.
        text=Markup(text.replace("<", "\\u003c").replace(">", "\\u003e")),
    )


def _renumbered(value: Any, name: str, known: dict[str, str]) -> Any:
    """The JSON with identifiers that are counted from 1: Bokeh counts on over a whole process."""
    if isinstance(value, list):
        return [_renumbered(item, name, known) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renumbered(item, name, known) for key, item in value.items() if key != "id"}
    if isinstance(value.get("id"), str):
        found["id"] = known.setdefault(value["id"], f"{name}-{len(known) + 1}")
    return found
