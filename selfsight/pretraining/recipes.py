"""Recipes by name: those of the package, and those in folders of the user's own."""

import os
from collections.abc import Iterator
from pathlib import Path

from selfsight.errors import UserError

SHIPPED = Path(__file__).parent.parent / "recipes"
VARIABLE = "SELFSIGHT_RECIPES"  # folders, separated as in PATH


def own_folders() -> list[Path]:
    """The folders in SELFSIGHT_RECIPES; without it `recipes` in the working directory.

    Raises: UserError for a folder in the variable that does not exist.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        usual = Path("recipes")
        return [usual] if usual.is_dir() and usual.resolve() != SHIPPED.resolve() else []
    folders = [Path(text).expanduser() for text in value.split(os.pathsep) if text]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{VARIABLE}={value}: there is no folder '{folder}'")
    return folders


def recipe_file(what: str) -> Path:
    """The file of a recipe, by its name; or the path of a file that exists.

    Raises: UserError for a name that nobody or several folders have.
    """
    found = [file for folder in _folders() if (file := folder / f"{what}.yaml").is_file()]
    if len(found) > 1:
        files = " and ".join(f"'{file}'" for file in found)
        raise UserError(f"'{what}': several recipes have this name: {files}; rename yours")
    if found:
        return found[0]
    if Path(what).is_file():
        return Path(what)
    if what.endswith((".yaml", ".yml")):
        raise UserError(f"'{what}': no such file")
    from selfsight.config import near  # pydantic; the completion of names need not wait for it

    raise UserError(
        f"'{what}': no such recipe or file.{near(what, recipes())} See: selfsight recipes"
    )


def recipe_name(file: Path) -> str | None:
    """The name by which a file is a recipe; None for any other file."""
    for folder in _folders():
        if file.is_relative_to(folder):
            return file.relative_to(folder).with_suffix("").as_posix()
    return None


def recipes() -> list[str]:
    """The names of all recipes."""
    return sorted({name for folder in _folders() for name in _names(folder)})


def recipe_title(name: str) -> str:
    """The comment on the first line of a recipe; of a recipe of the user's own also its folder."""
    path = recipe_file(name)
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    title = first.removeprefix("#").strip() if first.startswith("#") else ""
    return title if path.is_relative_to(SHIPPED) else f"{title} ({path})".strip()


def _folders() -> list[Path]:
    return [SHIPPED, *own_folders()]


def _names(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.yaml"):
        yield file.relative_to(folder).with_suffix("").as_posix()
