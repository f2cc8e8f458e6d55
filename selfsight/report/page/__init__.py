"""One offline HTML page about a run or a grid.

Importing any of its files raises UserError if the extra `report` is not installed.
"""

from importlib.util import find_spec

from selfsight.errors import UserError

for _package in ("bokeh", "jinja2"):
    if find_spec(_package) is None:
        raise UserError(
            f"a report needs the package {_package}; install it with: "
            f"pip install 'selfsight[report]'"
        )
