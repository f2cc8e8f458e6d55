"""The page of a grid: what it claims against the rows, and what it makes of a stranger's names."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfsight.errors import UserError
from selfsight.report.page.grid import grid_page, grid_panels, write_grid_page
from selfsight.report.page.grid_charts import cost_chart, forest_chart, pareto
from selfsight.report.page.grid_verdict import verdict
from selfsight.report.page.page import assemble
from selfsight.report.rows import rows
from selfsight.report.statistics import paired
from selfsight.report.stored import StoredGrid, place
from tests.conftest import ROOT
from tests.report.page.test_browser import browser, opened  # noqa: F401 (fixtures)
from tests.report.test_grid_table import GRID, cell

HOSTILE = "$$x^2$$</script><img src=x onerror=alert(1)> {{ 7 * 7 }} @y\x1b[31m"


def grid(cells=GRID, **about) -> StoredGrid:
    return StoredGrid(Path("some grid"), list(cells), about)


class Tags(HTMLParser):
    """The elements and the texts of a page; scripts are one text each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def models(html: str) -> list[dict]:
    """All objects in the data of the charts."""
    found: list[dict] = []

    def walk(value):
        if isinstance(value, dict):
            found.append(value)
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list):
                walk(item)

    for script in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html):
        walk(json.loads(script))
    return found


def sources(html: str) -> list[dict]:
    """The columns of each source of the charts."""
    return [
        dict(model["attributes"]["data"]["entries"])
        for model in models(html)
        if model.get("name") == "ColumnDataSource"
    ]


# Verdict ------------------------------------------------------------------------------------------


def test_verdict_of_several_seeds():
    said = verdict(rows(GRID))
    assert said == (
        "simclr is best (lin. top-1 91.0 ± 2.5 %, n = 3 seeds); byol is not distinguishable from "
        "it; the other 4 rows are below it. 1 of 19 cells are unfinished."
    )


def test_verdict_of_one_seed_claims_no_difference():
    said = verdict(rows([cell("simclr", 0, 0.9), cell("byol", 0, 0.5)]))
    assert said == (
        "simclr has the highest value (lin. top-1 90.0 %, n = 1 seed), and one seed proves no "
        "difference."
    )


def test_verdict_without_common_seeds_or_a_second_row():
    apart = [cell("simclr", s, 0.9 + s / 100) for s in (0, 1)]
    apart += [cell("byol", s, 0.5 + s / 100) for s in (2, 3)]
    said = verdict(rows(apart))
    assert "nothing can be said of byol, too few seeds are common" in said
    assert "only row that was measured" in verdict(rows(apart[:2]))


def test_verdict_with_a_baseline_on_top():
    cells = [cell("simclr", s, 0.5 + s / 100) for s in range(3)]
    cells += [cell("pixels", s, 0.8, backbone="") for s in range(3)]
    said = verdict(rows(cells))
    assert said.startswith("No method has a higher mean than the baseline pixels (")
    assert said.endswith("; simclr is below it.")


def test_verdict_of_nothing():
    cells = [cell("simclr", 0, error="not run yet")]
    assert verdict(rows(cells)) == verdict([]) == "Nothing has been measured yet."


accuracies = st.dictionaries(st.integers(0, 3), st.integers(0, 50).map(lambda k: k / 50))


@given(st.lists(accuracies, min_size=1, max_size=6))
def test_verdict_names_each_row_as_its_mark_says(values):
    cells = [cell(f"m{n}", s, a) for n, found in enumerate(values) for s, a in found.items()]
    group = rows(cells)
    said = verdict(group)
    best = [row.method for row in group if row.mark == "best"]
    if not best:
        assert " is best" not in said
        return
    assert said.startswith(f"{best[0]} is best (")
    parts = {"=": "not distinguishable", "?": "nothing can be said", "": "below it"}
    for mark, words in parts.items():
        methods = [r.method for r in group if r.mark == mark and r.values(r.main)]
        clauses = [part for part in said.split("; ") if words in part]
        assert len(clauses) == bool(methods)
        if methods and "other" not in clauses[0]:
            assert sorted(re.findall(r"m\d", clauses[0])) == sorted(methods)


# Charts -------------------------------------------------------------------------------------------

some_costs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(some_costs)
def test_pareto_set_by_its_definition(places):
    cells = [cell(f"m{n}", 0, a / 5, minutes=float(m)) for n, (m, a) in enumerate(places)]
    front = {row.method for row in pareto(rows(cells))}
    for n, (m, a) in enumerate(places):
        beaten = any(x <= m and y >= a and (x, y) != (m, a) for x, y in places)
        assert (f"m{n}" in front) == (not beaten)


def test_pareto_set_is_drawn_from_cheap_to_good():
    group = rows(GRID)
    assert [row.method for row in pareto(group)] == ["simclr"]
    cells = [cell(name, 0, a, minutes=m) for name, a, m in (("a", 0.5, 1.0), ("b", 0.9, 9.0))]
    front = pareto(rows(cells))
    assert [row.method for row in front] == ["a", "b"]
    assert all(x.cost("minutes") <= y.cost("minutes") for x, y in pairwise(front))


def test_charts_hold_the_numbers_of_the_rows():
    html = str(grid_panels(grid())[0].html)
    found = sources(html)
    forest = next(s for s in found if "shade" in s)
    by_name = {name: n for n, name in enumerate(forest["name"])}
    assert set(by_name) == {"byol", "dino", "mae", "untrained", "pixels"}
    values = {row.method: row.values("linear_top1") for row in rows(GRID)}
    for name, n in by_name.items():
        expected = paired(values[name], values["simclr"])
        assert forest["x"][n] == pytest.approx(100 * expected.mean)
        if expected.half is not None:
            assert forest["low"][n] == pytest.approx(100 * (expected.mean - expected.half))
            assert forest["high"][n] == pytest.approx(100 * (expected.mean + expected.half))
    assert sorted(forest["x"]) == forest["x"]
    point = next(s for s in found if s.get("name") == ["simclr"])
    assert (point["x"], point["y"]) == ([5.0], [pytest.approx(91)])
    assert point["shown"] == ["91.0 ± 2.5 %, n = 3"]


@pytest.mark.parametrize(
    ("minutes", "unit", "place"),
    [(0.5, "seconds", 30), (1.9, "seconds", 114), (7, "minutes", 7), (600, "hours", 10)],
)
def test_time_is_in_the_unit_that_reads_best(minutes, unit, place):
    figure, title = cost_chart(rows([cell("byol", 0, 0.5, minutes=minutes)]))
    assert figure.xaxis.axis_label == f"{unit} of pretraining"
    assert unit in title
    (source,) = {r.data_source for r in figure.renderers if "name" in r.data_source.data}
    assert source.data["x"] == [pytest.approx(place)]


def test_many_rows_have_a_colour_each():
    cells = [cell(f"m{n}", s, 0.5 + n / 99 + s / 50) for n in range(30) for s in range(2)]
    cells += [cell("pixels", s, 0.4, backbone="", minutes=None) for s in range(2)]
    html = str(grid_panels(grid(cells))[0].html)
    shades = re.findall(r'<i style="background:(#[0-9a-f]{6})">', html)
    assert len(set(shades)) == len(shades) == 31


def test_no_chart_without_what_it_shows():
    assert cost_chart(rows([cell("byol", 0, 0.5, minutes=None)])) is None
    assert forest_chart(rows([cell("byol", 0, 0.5)])) is None
    assert forest_chart(rows([cell("byol", 0, 0.5), cell("mae", 1, 0.4)])) is None


# Page ---------------------------------------------------------------------------------------------


def test_page_shows_rows_remarks_pairs_and_notes():
    page = grid_page(grid(title="Nine methods", test_images={"digits": 360}), Path("page.html"))
    assert (page.title, page.kind) == ("Nine methods", "grid")
    assert [panel.title for panel in page.panels] == [
        "digits",
        "Remarks",
        "All pairs",
        "What the numbers mean",
    ]
    html = assemble(page)
    assert "91.0 ± 2.5" in html
    assert "unfinished: swav, seed 0: CUDA out of memory [GPU 0] | tried" in html
    assert "within seed noise of untrained" in html
    assert "360 test images" in html
    assert html == assemble(grid_page(grid(title="Nine methods", test_images={"digits": 360}),
                                      Path("page.html")))  # fmt: skip


def test_each_data_set_has_a_verdict_and_a_panel():
    cells = [*GRID, *(cell("simclr", s, 0.5 + s / 9, data="photos") for s in range(2))]
    page = grid_page(grid(cells), Path("page.html"))
    assert page.verdict.count("<br>") == 1
    assert "digits: simclr is best" in page.verdict
    assert "photos: simclr is best" in page.verdict
    assert [panel.name for panel in page.panels][:2] == ["data-1", "data-2"]


def test_a_grid_without_any_result_has_a_page():
    page = grid_page(grid([cell("simclr", 0, error="not run yet", minutes=None)]), Path("a.html"))
    assert page.verdict == "Nothing has been measured yet."
    assert "not run yet" in assemble(page)
    assert assemble(grid_page(grid([]), Path("a.html")))


def test_names_from_files_are_text_in_the_page():
    cells = [cell(HOSTILE, s, 0.5 + s / 100, data=HOSTILE, minutes=1.0) for s in range(2)]
    cells += [cell("byol", s, 0.8 - s / 100, data=HOSTILE, error=HOSTILE) for s in range(2)]
    about = {"title": HOSTILE, "hardware": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    stored = StoredGrid(Path(HOSTILE), cells, about, {}, (HOSTILE,))
    html = assemble(grid_page(stored, Path("page.html")))
    tags = Tags(html)
    assert not [tag for tag, _ in tags.found if tag == "img"]
    assert sum(tag == "script" for tag, _ in tags.found) == 3  # one with data, two with code
    assert not any(name.startswith("on") for _, found in tags.found for name in found)
    assert "\x1b" not in html
    shown = "".join(tags.texts)
    assert "$$x^2$$</script><img src=x onerror=alert(1)> {{ 7 * 7 }} @y\\x1b[31m" in shown
    plain = [model for model in models(html) if model.get("name") == "PlainText"]
    assert any("</script>" in m["attributes"]["text"] for m in plain)  # no formula


def test_links_lead_to_the_reports_that_exist(tmp_path):
    run = tmp_path / "grid #1/cells/one & two/run"
    run.mkdir(parents=True)
    there, missing = GRID[0], GRID[1]
    runs = {place(there): run, place(missing): tmp_path / "nowhere"}
    stored = StoredGrid(tmp_path / "grid #1", GRID, {}, runs)
    for file in (tmp_path / "grid #1/report.html", tmp_path / "elsewhere/page.html"):
        (run / "report.html").unlink(missing_ok=True)
        without = grid_page(stored, file)
        assert "<a href" not in without.panels[0].html
        assert shlex.split(without.command) == ["selfsight", "report", str(run)]
        (run / "report.html").write_text("a page")
        linked = grid_page(stored, file)
        assert linked.command == ""
        tags = Tags(str(linked.panels[0].html))
        (link,) = [found["href"] for tag, found in tags.found if tag == "a"]
        assert ":" not in link
        assert (file.parent / unquote(link)).resolve() == (run / "report.html").resolve()


def test_an_earlier_page_is_replaced_and_another_file_is_not(tmp_path):
    folder = shutil.copytree(ROOT / "tests/legacy/grid", tmp_path / "grid")
    stored = StoredGrid(folder, GRID, {})
    file = write_grid_page(stored)
    assert file == folder / "report.html"
    first = file.read_bytes()
    assert write_grid_page(stored).read_bytes() == first
    with pytest.raises(UserError, match="exists and is no report"):
        write_grid_page(stored, folder / "table.csv")


def test_report_of_a_folder_by_what_it_holds(tmp_path, command):
    shutil.copytree(ROOT / "tests/legacy/grid", tmp_path / "grid")
    done = command("report", "grid", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "Wrote grid/report.html\n")
    html = (tmp_path / "grid/report.html").read_text()
    assert "Report of a grid" in html
    assert "one seed proves no difference" in html
    (tmp_path / "grid/table.json").unlink()
    assert command("report", "grid", "-o", "b.html", cwd=tmp_path).returncode == 0
    assert "has not come to its end" in (tmp_path / "b.html").read_text()

    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (["empty"], "'empty': is neither a run (no config.yaml in it) nor a grid"),
        (["nowhere"], "'nowhere': no such run"),
        (["grid", "data.path=x"], "data.path=x: keys say where the images of a run are"),
    ):
        done = command("report", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (tmp_path / "grid/table.json").write_text("{")
    done = command("report", "grid", cwd=tmp_path)
    assert done.returncode == 2
    assert "table.json' is damaged: not valid JSON" in done.stderr


# Browser ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_a_browser_draws_it_without_an_error_or_a_request(tmp_path, opened, width, scheme):  # noqa: F811
    cells = [*GRID, *(cell(HOSTILE, s, 0.6 + s / 50, minutes=3.0) for s in range(3))]
    file = write_grid_page(StoredGrid(tmp_path, cells, {"title": HOSTILE}), tmp_path / "a.html")
    page = opened(file, width, scheme)
    assert page.locator(".chart").count() == 2
    assert page.locator("table.rows tbody tr").count() == 8 + 21
    assert page.evaluate("document.documentElement.scrollWidth") == width
    charts = page.locator(".chart").evaluate_all("all => all.map((x) => x.offsetHeight)")
    assert all(height > 100 for height in charts)
