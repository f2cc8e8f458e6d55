"""Files of other systems, opened as the commands open them."""

from pathlib import Path

from selfsight.cli.files import open_file, open_foreign
from selfsight.interop.report import Converted
from selfsight.pretraining.config import Composed


def composed(what: str, keys: list[str]) -> Composed:
    file = open_file(what, keys)
    with file.translated():
        return file.compose()


def converted(path: Path) -> Converted:
    return open_foreign(path).converted
