"""A Lightweight-SSL file under way: its keys are read one by one into a native tree."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfsight.config import Tree, near
from selfsight.interop.ini import Ini
from selfsight.interop.report import Converted, Fate, Reader, put

NAME = "lightweight-ssl"
TRAINED_ELSEWHERE = "describes the pretraining, which the encoder's own file says"


class File:
    """What is read and what has become of it.

    Attributes:
        folder: name of the file's folder, which is its phase.
        tree: the native keys so far.
    """

    def __init__(self, path: Path, parsed: Ini) -> None:
        self.path, self.reader = path, Reader(parsed.tree, str(path), parsed.lines)
        self.tree: Tree = {}
        self.folder = path.absolute().parent.name
        self.pretraining = self.folder == "pretrain"
        phase = "pretrain" if self.pretraining else "linear-augmented"
        self.result = Converted(NAME, phase, self.tree)

    def value(self, reader: Reader, key: str, *kinds: type, default: Any = None) -> Any:
        """A value of one of these types; the default if it is absent, empty or of another type."""
        value = reader.take(key)
        if value is None or value == "":
            reader.tell(key, Fate.WITHOUT_EFFECT, why="it is empty")
            return default
        if float in kinds and type(value) is int:
            return float(value)
        if type(value) not in kinds:
            wanted = " or ".join(f"@{kind.__name__}" for kind in kinds if kind is not tuple)
            reader.refuse(key, f"is a {type(value).__name__}, not {wanted}")
            return default
        return value

    def give(self, reader: Reader, key: str, native: str, value: Any, why: str = "") -> None:
        """A key becomes a native one: the same, or for a reason another."""
        reader.tell(key, Fate.REPLACED if why else Fate.TAKEN, put(self.tree, native, value), why)

    def same(self, reader: Reader, key: str, native: str, *kinds: type) -> Any:
        """A key that is taken over as it is."""
        value = self.value(reader, key, *kinds)
        if value is not None:
            self.give(reader, key, native, value)
        return value

    def ignore(self, reader: Reader, keys: Iterable[str], why: str) -> None:
        for key in keys:
            reader.tell(key, Fate.WITHOUT_EFFECT, why=why)

    def choice(self, key: str, known: Iterable[str], needed: bool = True) -> str | None:
        """A name that is one of these."""
        value = self.value(self.reader, key, str)
        if value in known:
            return value
        if value is not None:
            hint = near(value, known) or f" Known: {', '.join(known)}"
            self.reader.refuse(key, f"no such {key}.{hint}")
        elif needed:
            self.reader.refuse(key, f"missing key; it is one of {', '.join(known)}")
        return None
