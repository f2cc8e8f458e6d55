"""The pages of the site, written into the folder that Sphinx reads.

Pages of docs/ are copied, README.md, CHANGELOG.md and CONTRIBUTING.md become pages, notebooks are
shown as text, and the reference follows from recipes, protocols, commands and code. Links between
files of the repository become links between pages.
"""

import os
import posixpath
import re
from fnmatch import fnmatch
from pathlib import Path

import jupytext

from _site import reference

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
# files of the repository -> pages, beside those of docs/ itself
SPECIAL = {"README.md": "start.md", "CHANGELOG.md": "changelog.md"}
SPECIAL |= {"CONTRIBUTING.md": "contributing.md", "docs": "index.md"}
SPECIAL |= {"docs/search.md": "searching.md"}  # search.html is Sphinx's own page
HOW_TO_RUN = """\
```{note}
This page is `notebooks/%s`, a notebook that is kept as a Python file. `make notebooks` runs all
notebooks and writes them, with their pictures, to `build/notebooks/`. To change one, open the file
in Jupyter with jupytext installed, or make a copy for Jupyter: `jupytext --to ipynb FILE`.
```
"""


def make(folder: Path) -> None:
    """Write all pages. A page that is the same keeps its time, so that Sphinx does not read it
    again; a page that no longer exists is removed."""
    wanted = {folder / name: text for name, text in all_pages(folder).items()}
    for old in set(folder.rglob("*.md")) - wanted.keys():
        old.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def all_pages(folder: Path) -> dict[str, str]:
    """The name of each page -> its text; `folder` is where they will lie."""
    pages = {}
    for source, page in sources().items():
        path = ROOT / source
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" else tutorial(path)
        pages[page] = with_links(text, source, page, folder)
    pages |= reference.all_pages()
    pages["index.md"] = "".join(
        line
        for line in pages["index.md"].splitlines(keepends=True)
        if not line.endswith("*\n") or any(fnmatch(page, f"{line.strip()}.md") for page in pages)
    )  # a pattern of a table of contents that matches no page would be a warning
    return pages


def sources() -> dict[str, str]:
    """Each file of the repository that is a page -> that page."""
    found = {f"docs/{path.name}": path.name for path in sorted(DOCS.glob("*.md"))}
    found |= {name: page for name, page in SPECIAL.items() if (ROOT / name).is_file()}
    notebooks = sorted((ROOT / "notebooks").glob("*.py"))
    return found | {f"notebooks/{p.name}": f"tutorials/{p.stem}.md" for p in notebooks}


def tutorial(path: Path) -> str:
    """A notebook as Markdown, with the note how to run it below its title."""
    cells = jupytext.read(path, fmt="py:percent").cells
    shown = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in cells
    ]
    title, _, rest = shown[0].partition("\n")
    return "\n\n".join([title, HOW_TO_RUN % path.name + rest, *shown[1:]]) + "\n"


def with_links(text: str, source: str, page: str, folder: Path) -> str:
    """The text with each link to a file of the repository as a link to its page; a file that is no
    page can be downloaded, and a folder is named.

    Args:
        source: the file of the repository that the text is from.
        page: the page that it becomes, in `folder`.
    """
    at = {**{key: SPECIAL[key] for key in SPECIAL}, **sources()}

    def link(match: re.Match) -> str:
        label, target = match[1], match[2]
        if not label or "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        file, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
        if path in at:
            return f"[{label}]({_relative(at[path], page)}{mark}{anchor})"
        if (ROOT / path).is_file():
            return f"[{label}](<path:{os.path.relpath(ROOT / path, (folder / page).parent)}>)"
        return f"{label} (`{path}`)" if (ROOT / path).is_dir() else match[0]

    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, part) for part in parts[::2]]
    return "".join(parts)


def _relative(page: str, start: str) -> str:
    return posixpath.relpath(page, posixpath.dirname(start) or ".")
