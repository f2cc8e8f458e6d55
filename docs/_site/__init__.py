"""The Sphinx extension of this site: it makes the pages, and reads the package's docstrings."""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from _site import docstrings, pages


def setup(app: Sphinx) -> dict[str, Any]:
    # before napoleon (500), which reads sections
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("builder-inited", _make_pages)
    return {"parallel_read_safe": True}


def _make_pages(app: Sphinx) -> None:
    pages.make(Path(app.srcdir))
