"""The documentation site: `make docs` builds it into build/docs/html, without network or GPU.

The pages are made in build/docs/pages (`_site/pages.py`): those of this folder, and others that
follow from README.md, the notebooks, the recipes and the code.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from selfsight import __version__  # noqa: E402

project = "Selfsight"
copyright = "the Selfsight authors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "_site",
]

html_theme = "furo"
html_title = f"Selfsight {release}"
highlight_language = "text"  # of a block that names none: commands and what they print
default_role = "code"  # `x` in a docstring is code
myst_heading_anchors = 4  # page.md#heading, as a code host has it

autodoc_typehints_format = "short"
autoclass_content = "both"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch say nothing about a method of ours
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_custom_sections = [("Class attributes", "params_style")]

nitpicky = True
# A type in a signature needs an entry, but for three kinds: names of Python and of other libraries
# (nothing is downloaded), configuration classes, whose keys are in tables, and types that no user
# meets (INNER). TAKEN_AND_RETURNED in _site/api.py makes an entry for a new one.
INNER = r"(\w+Config|\w+\.Config|ViewGroup|FrozenTeacher|Part|Paper|Origins|[A-Z])"
nitpick_ignore_regex = [("py:.*", r"(?!selfsight\.).*"), ("py:.*", rf"selfsight\..*\.{INNER}")]
