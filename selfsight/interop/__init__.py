"""Read configuration files of United Perception and Lightweight-SSL as native ones.

A reader's module maps the keys of its format to Selfsight's and runs nothing. It has two functions:
`recognises(path, text)`, whether a file's content is of its format, which raises nothing, and
`convert(path, overrides)`, the native recipe with a report on every key.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.errors import UserError

if TYPE_CHECKING:  # reading the plug-in for --help imports this; pydantic would take 0.1 s
    from selfsight.interop.report import Converted

NAMES = ("up", "lightweight-ssl")
ENDINGS = (".yaml", ".yml", ".ini", ".cfg", ".conf", ".txt")


def recognise(path: str | Path) -> str | None:
    """The format of a file, by its content; None for any other file."""
    path = Path(path)
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return next((n for n, module in _modules().items() if module.recognises(path, text)), None)


def convert(path: str | Path, overrides: list[str] | None = None) -> "Converted":
    """The native recipe of another system's file.

    Args:
        overrides: 'key=value' in the file's own keys.
    Raises: UserError that lists every unknown key and every value that is not supported.

    >>> keys = "dataset = cifar10@str", "ssl_method = simclr@str", "backbone = resnet18@str"
    >>> keys += "batch_size = 64@int", "epochs = 2@int"
    >>> Path("pretrain").mkdir()
    >>> _ = Path("pretrain/simclr.ini").write_text(chr(10).join(keys))
    >>> convert(Path("pretrain/simclr.ini")).tree["method"]["name"]
    'simclr'
    """
    name = recognise(path)
    if name is None:
        raise UserError(f"'{path}': {_not_recognised(Path(path))}")
    return _modules()[name].convert(Path(path), overrides or [])


def _modules() -> dict:
    from selfsight.interop import lightweight, up

    return dict(zip(NAMES, (up, lightweight), strict=True))


def _not_recognised(path: Path) -> str:
    if not path.is_file():
        return "no such file"
    return (
        "is neither a file of United Perception (YAML with runtime.task_names, net, trainer) nor "
        "of Lightweight-SSL (INI with key = value@type)"
    )
