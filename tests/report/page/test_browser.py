"""Pages in a real browser: nothing is asked of a network, nothing fails, pictures follow."""

import json
from pathlib import Path

import pytest

from selfsight.report.page.run import report
from tests.report.page.conftest import EVIL

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Where the n-th point of the map is in the window.
PLACE = """(n) => {
  const view = Bokeh.index.roots.find((root) => root.model.name === "map");
  const data = view.model.renderers.find((r) => r.name === "points").data_source.data;
  const box = view.canvas_view.el.getBoundingClientRect();
  return [
    box.x + view.frame.x_scale.compute(data.x[n]), box.y + view.frame.y_scale.compute(data.y[n]),
    data.name[n], data.about[n],
  ];
}"""
# The tooltip in Bokeh's shadow trees: its text, and what its thumbnail shows.
TIP = """() => {
  const found = [];
  const look = (tree) => {
    for (const element of tree.querySelectorAll("*")) {
      if (element.classList.contains("thumbnail") && element.offsetParent) {
        const style = getComputedStyle(element);
        const text = element.parentElement.textContent;
        found.push([text, style.backgroundImage.slice(0, 27), style.backgroundPosition]);
      }
      if (element.shadowRoot) look(element.shadowRoot);
    }
  };
  look(document);
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.is_file():
        pytest.skip(f"needs {CHROMIUM}")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file; at the end there must have been no error and no request but for the file."""
    pages, wrong = [], []

    def open_file(file, width=1200, scheme="light", touch=False):
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=touch
        )
        pages.append(page)
        usual = ("data:", "blob:", file.as_uri())
        page.on("request", lambda r: r.url.startswith(usual) or wrong.append(r.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-drawn]", timeout=30_000)
        return page

    yield open_file
    for page in pages:
        page.close()
    assert wrong == []


@pytest.fixture(scope="module")
def page_of_digits(digits, tmp_path_factory):
    return report(digits, tmp_path_factory.mktemp("page") / "digits.html", ["device=cpu"])


def test_a_point_shows_its_image_and_another_point_another_one(opened, page_of_digits):
    page = opened(page_of_digits)
    page.locator("#map .chart").scroll_into_view_if_needed()
    seen = []
    for n in (3, 50):
        x, y, name, about = page.evaluate(PLACE, n)
        page.mouse.move(x - 30, y)
        page.mouse.move(x, y)
        page.wait_for_timeout(150)
        (text, image, position) = page.evaluate(TIP)[0]
        assert name in text
        assert about in text
        assert image == 'url("data:image/webp;base64'
        seen.append(position)
    assert len(set(seen)) == 2


def test_a_tap_shows_an_image_on_a_phone(opened, page_of_digits):
    page = opened(page_of_digits, 400, touch=True)
    page.locator("#map .chart").scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    x, y, _, about = page.evaluate(PLACE, 7)
    assert page.locator(".picked").is_hidden()
    page.touchscreen.tap(x, y)
    page.locator(".picked").wait_for()
    assert about in page.locator(".picked").inner_text()
    style = "x => [getComputedStyle(x).backgroundImage.slice(0, 27), x.style.backgroundPosition]"
    image, position = page.locator(".picked .thumbnail").evaluate(style)
    assert image == 'url("data:image/webp;base64'
    assert position == "-672px 0px"  # the eighth thumbnail of 96 pixels in the first line


def test_the_switch_colours_the_points_and_changes_the_legend(opened, page_of_digits):
    page = opened(page_of_digits)
    field = (
        "Bokeh.index.roots.find((r) => r.model.name === 'map').model.renderers"
        ".find((r) => r.name === 'points').glyph.fill_color.field"
    )
    assert page.evaluate(field) == "colour0"
    assert page.locator("#map .legend:visible").inner_text().split() == list("0123456789")
    page.get_by_label("right or wrong").check()
    assert page.evaluate(field) == "colour2"
    assert page.locator("#map .legend:visible").inner_text().split() == ["right", "wrong"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_is_not_scrolled_sideways(opened, page_of_digits, scheme):
    page = opened(page_of_digits, 400, scheme)
    page.locator("details summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    charts = page.locator(".chart").evaluate_all("all => all.map((x) => x.offsetWidth)")
    assert charts
    assert all(200 < width <= 376 for width in charts)


def test_text_on_a_chart_follows_the_colour_scheme(opened, page_of_digits):
    page = opened(page_of_digits)
    colour = (
        "Bokeh.index.roots.find((r) => r.model.name === 'loss').model.below[0]"
        ".major_label_text_color"
    )
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert page.evaluate(colour) != light


def test_names_that_are_html_are_shown_as_text(opened, hostile, tmp_path):
    file = report(hostile, tmp_path / "page.html", ["device=cpu"])
    page = opened(file)
    assert page.locator("h1").inner_text() == "<u>run's"
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("section img").count() > 50
    for name in EVIL:
        assert name in page.locator("#map .legend:visible").inner_text()
    for script in page.locator("script.bokeh").all():
        json.loads(script.text_content())
    x, y, name, about = page.evaluate(PLACE, 0)
    page.locator("#map .chart").scroll_into_view_if_needed()
    x, y, name, about = page.evaluate(PLACE, 0)
    page.mouse.move(x - 20, y)
    page.mouse.move(x, y)
    page.wait_for_timeout(150)
    text = page.evaluate(TIP)[0][0]
    assert about in text
    assert name in text
