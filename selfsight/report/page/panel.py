"""A panel of a page, and the text in it: everything that comes from files is escaped here.

Jinja2 and Bokeh are the extra `report`; only the files of this folder import them.
"""

import base64
import functools
import io
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from selfsight.errors import printable

QUALITY = 80  # of lossy pictures, as WebP counts it


@dataclass(frozen=True)
class Panel:
    """A section of a page.

    Attributes:
        name: its anchor and the id of its element: lower-case letters and hyphens.
        title: the heading, as text.
        html: its content; text in it is already escaped.
        note: one short sentence that says how to read it, as text.
        folded: whether it is closed until the reader opens it.
    """

    name: str
    title: str
    html: Markup
    note: str = ""
    folded: bool = False


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("selfsight.report.page", "templates")
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    found = Environment(autoescape=True, loader=loader, **options)
    found.finalize = clean
    return found


def clean(value: object) -> object:
    """Text with its control codes made visible, and without what UTF-8 cannot hold (names of files
    may be any bytes); other values and markup as they are.

    >>> clean("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value).encode("utf-8", "backslashreplace").decode()


def render(template: str, **values: object) -> Markup:
    """A file of `templates/` with these values, which are escaped unless they are Markup."""
    return Markup(_environment().get_template(template).render(values))


def fragment(source: str, **values: object) -> Markup:
    """A short template given as text, with these values, escaped as by `render`.

    >>> fragment("<b>{{ name }}</b>", name="<script>")
    Markup('<b>&lt;script&gt;</b>')
    """
    return Markup(_compiled(source).render(values))


@functools.lru_cache(64)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


def webp(pixels: np.ndarray, quality: int = QUALITY, lossless: bool = False) -> bytes:
    """Pixels (H, W, 3) uint8 as a WebP file."""
    file = io.BytesIO()
    found = Image.fromarray(np.ascontiguousarray(pixels))
    found.save(file, "WEBP", lossless=lossless, quality=quality, method=4)
    return file.getvalue()


def as_uri(content: bytes) -> str:
    """A WebP file as a data URI, which a page shows without a request."""
    return "data:image/webp;base64," + base64.b64encode(content).decode()


def data_uri(pixels: np.ndarray, lossless: bool = False, quality: int = QUALITY) -> str:
    """Pixels (H, W, 3) uint8 as a data URI.

    Args:
        lossless: for small pictures that are enlarged, whose blocks would be seen.
    """
    return as_uri(webp(pixels, quality, lossless))


def picture(pixels: np.ndarray, alt: str, least: int = 64, quality: int = QUALITY) -> Markup:
    """An <img> of pixels (H, W, 3) uint8.

    Args:
        alt: what it shows, for readers who do not see it; escaped here.
        least: a picture with smaller sides is enlarged by a whole factor to about this many pixels,
            with its own pixels visible.
    """
    height, width = pixels.shape[:2]
    factor = max(1, round(least / max(height, width)))
    return fragment(
        '<img src="{{ uri }}" alt="{{ alt }}" title="{{ alt }}" width="{{ width }}" '
        'height="{{ height }}"{% if enlarged %} class="pixels"{% endif %}>',
        uri=data_uri(pixels, lossless=factor > 1, quality=quality),
        alt=alt,
        width=width * factor,
        height=height * factor,
        enlarged=factor > 1,
    )
