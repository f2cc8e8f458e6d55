"""The files that commands take: recipes, and files of other systems that plug-ins read.

A plug-in is any package with an entry point in the group `selfsight.plugins`. That names a module:

    register(app)                adds commands to the Typer application
    open_file(path, keys, opts)  returns a `ConfigFile`, or None if the file is not one of its own
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from selfsight.errors import UserError

if TYPE_CHECKING:
    from selfsight.evaluate.protocols import Result
    from selfsight.pretraining.config import Composed

GROUP = "selfsight.plugins"
Opts = Annotated[
    bool,
    typer.Option(
        "--opts", help="other systems' files: keys and values alternate: --opts trainer.max_epoch 5"
    ),
]


class ConfigFile(Protocol):
    """A configuration file that a command was started with.

    Attributes:
        phase: the command that it is for: pretrain, linear, linear-augmented or finetune.
    """

    phase: str

    def translated(self) -> AbstractContextManager[Any]:
        """Re-raises a UserError about a native key in terms of the file's own keys."""

    def compose(self, run: str | None = None) -> "Composed":
        """The native configuration of a pretraining; `run` replaces the file's run folder.

        Raises: UserError for a mistake, or if the file is for another phase.
        """

    def start_processes(self, device: str) -> None:
        """Return in each worker process; raise typer.Exit in the process that only started
        them."""

    def evaluate(self, command: str, run: str | None = None) -> "list[Result]":
        """Evaluate as the file says; only called if the phase is not pretrain.

        Raises: UserError if it is for another command.
        """


class Recipe:
    """A shipped recipe or a native YAML file."""

    phase = "pretrain"

    def __init__(self, what: str, overrides: list[str] | None) -> None:
        self._what, self._overrides = what, overrides

    def translated(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def compose(self, run: str | None = None) -> "Composed":
        from selfsight.pretraining.config import compose

        return compose(self._what, self._overrides, run)

    def start_processes(self, device: str) -> None:
        pass


@functools.cache
def plugins() -> list[Any]:
    """The modules of all plug-ins, in the order of their names.

    Raises: UserError for one that cannot be imported, or for two of the same name.
    """
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    modules = {}
    for entry in entries:
        try:
            module = entry.load()
        except Exception as error:  # the plug-in's code may raise anything
            raise UserError(
                f"plug-in {entry.name}={entry.value}: cannot be imported: {error}; repair or "
                f"uninstall its package"
            ) from None
        if modules.setdefault(entry.name, module) is not module:
            raise UserError(f"plug-in {entry.name}: two packages define it; uninstall one of them")
    return list(modules.values())


def open_foreign(
    path: str | Path, keys: list[str] | None = None, opts: bool = False
) -> ConfigFile | None:
    """Read a file with the first plug-in that knows its format; None if no plug-in knows it.

    Args:
        keys: key=value in the file's own keys; with opts also keys and values in turn.
    Raises: UserError if it holds a mistake.
    """
    opened = (plugin.open_file(Path(path), keys or [], opts) for plugin in plugins())
    file = next((file for file in opened if file is not None), None)
    if file is None and opts:
        raise UserError(f"--opts: '{path}' is not a file of another system; give key=value")
    return file


def open_file(what: str, keys: list[str] | None = None, opts: bool = False) -> ConfigFile:
    """A recipe, a native YAML file, or a file of another system."""
    return open_foreign(what, keys, opts) or Recipe(what, keys)


@contextmanager
def composed(what: str, keys: list[str] | None) -> "Iterator[Composed]":
    """The configuration of a pretraining; errors inside are in terms of the file."""
    file = open_file(what, keys)
    with file.translated():
        yield file.compose()
