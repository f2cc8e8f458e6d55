"""A page: its parts, and how they become one HTML file that asks nothing of a network."""

import functools
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from bokeh.resources import INLINE
from markupsafe import Markup

from selfsight.errors import UserError
from selfsight.files import open_plain, write_text
from selfsight.report.page.panel import Panel, render

LIMIT = 5 * 10**6  # bytes of a page
MARK = '<meta name="generator" content="selfsight report">'  # in the first bytes of every page


@dataclass(frozen=True)
class Page:
    """A page, all of it text but for the panels.

    Attributes:
        title: the name of what it shows; kind: what that is ("run", "grid").
        facts: (what, value), short, below the title.
        verdict: one sentence.
        command: what to type next, if there is something; remedy: what for.
        warnings: a sentence each.
        panels: in the order in which they are shown.
    """

    title: str
    kind: str
    facts: tuple[tuple[str, str], ...]
    verdict: str
    warnings: tuple[str, ...]
    panels: tuple[Panel, ...]
    command: str = ""
    remedy: str = field(default="")


def assemble(page: Page) -> str:
    """The HTML of a page of at most LIMIT bytes: if it is larger, its largest panels are left out,
    and a warning says so."""
    html = _html(page)
    while len(html.encode()) > LIMIT and page.panels:
        largest = max(page.panels, key=lambda panel: len(panel.html))
        said = f"'{largest.title}' is left out: the page would be larger than {LIMIT / 1e6:.0f} MB."
        kept = tuple(panel for panel in page.panels if panel is not largest)
        page = replace(page, panels=kept, warnings=(*page.warnings, said))
        html = _html(page)
    return html


def _html(page: Page) -> str:
    drawn = any('class="bokeh"' in panel.html for panel in page.panels)
    scripts = [_bokeh(), _file("page.js")] if drawn else []
    return str(
        render(
            "page.html",
            page=page,
            mark=Markup(MARK),
            style=Markup(_file("page.css")),
            scripts=[Markup(script) for script in scripts],
        )
    )


@functools.cache
def _bokeh() -> str:
    """BokehJS without what no chart here needs (widgets, tables, formulas, WebGL)."""
    main = INLINE.clone()
    main.components = ["bokeh"]
    return main.js_raw[0].replace("</script", "<\\/script")


def _file(name: str) -> str:
    return files("selfsight.report.page").joinpath("templates", name).read_text("utf-8")


def check_output(output: Path) -> None:
    """Raises: UserError if `output` is a folder, or a file that no report wrote."""
    if output.is_dir():
        raise UserError(f"'{output}' is a folder; name a file with -o FILE.html")
    if output.exists():
        with open_plain(output) as file:
            if MARK.encode() not in file.read(4096):
                raise UserError(
                    f"'{output}' exists and is no report; remove it, or choose another file with -o"
                )


def write_page(page: Page, output: Path) -> None:
    """Write the page; an earlier one is replaced. Raises: as `check_output`."""
    check_output(output)
    write_text(output, assemble(page))
