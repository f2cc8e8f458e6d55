"""The documentation site builds without a warning, and its parts do what they say."""

import doctest
import importlib
import os
import re
import subprocess
import sys

import pytest

from selfsight.methods import METHODS
from tests.conftest import ROOT

SPHINX = ("-m", "sphinx", "--quiet", "-W", "--keep-going")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` builds it."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    (folder / "pages").mkdir()
    arguments = ("-c", str(ROOT / "docs"), str(folder / "pages"), str(folder / "html"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *SPHINX, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_the_command_is_that_of_the_makefile():
    (line,) = re.findall(r"\$\(BIN\)/python (-m sphinx .*)", (ROOT / "Makefile").read_text())
    assert line.split()[: len(SPHINX)] == list(SPHINX)


def test_every_page_is_there(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"start", "changelog"}
    pages = {"searching" if page == "search" else page for page in pages}
    assert {page for page in pages if not (site / f"{page}.html").is_file()} == set()
    assert len(list((site / "tutorials").glob("*.html"))) == 5
    recipes = {path.name for path in (ROOT / "selfsight/recipes").iterdir() if path.is_dir()}
    assert recipes == {path.stem for path in (site / "reference/recipes").glob("*.html")}


def test_a_method_is_shown_with_its_keys_and_recipes(site):
    page = re.sub(r"<[^>]+>", "", (site / "reference/methods.html").read_text())
    assert [name for name in METHODS if name not in page] == []
    assert "A Simple Framework for Contrastive Learning" in page
    row = r"method\.temperature\s+float &gt; 0\s+0\.1\s+T in eq\. 1\s"
    assert re.search(row, page)
    recipe = re.sub(r"<[^>]+>", "", (site / "reference/recipes/digits.html").read_text())
    source = (ROOT / "selfsight/recipes/digits/byol.yaml").read_text()
    assert all(
        line in recipe for line in source.splitlines() if "&" not in line and "'" not in line
    )


def test_links_between_files_are_links_between_pages(site):
    text = (site / "start.html").read_text()
    assert 'href="data.html"' in text
    assert 'href="contributing.html"' in text
    assert 'href="start.html"' in (site / "index.html").read_text()
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'href="[^":]*\.md[#"]', text), page
        assert not re.findall(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)', text), page


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.partition(".")[0] == "_site"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["docstrings", "fields"])
def test_the_examples_in_the_extension(extension, name):
    result = doctest.testmod(extension(f"_site.{name}"))
    assert result.attempted
    assert not result.failed


def test_links_out_of_the_documentation(extension, tmp_path):
    """To a page, to a file that is none, to a folder; code stays as it is."""
    pages = extension("_site.pages")
    text = "[a](../README.md#features) [b](../selfsight/errors.py) [c](../examples/plugin)\n"
    text += "```\n[d](../README.md)\n```\n"
    found = pages.with_links(text, "docs/data.md", "data.md", tmp_path)
    relative = os.path.relpath(ROOT / "selfsight/errors.py", tmp_path)
    first = f"[a](start.md#features) [b](<path:{relative}>) c (`examples/plugin`)\n"
    assert found == first + "```\n[d](../README.md)\n```\n"
    text = pages.with_links("[e](docs/views.md)", "README.md", "start.md", tmp_path)
    assert text == "[e](views.md)"
