"""A Lightweight-SSL file under way: its keys are read one by one into a native tree."""

from pathlib import Path
from typing import Any

from tacit.config import Tree, near
from tacit.dialects.ini import Ini
from tacit.dialects.report import Converted, Fate, Reader, put

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
        """A value of one of these types, or the default, also where it is of another type."""
        value = reader.take(key, default)
        if key not in reader:
            return default
        if float in kinds and type(value) is int:
            return float(value)
        if type(value) not in kinds:
            wanted = " or ".join(f"@{kind.__name__}" for kind in kinds if kind is not tuple)
            reader.refuse(key, f"is a {type(value).__name__}, not {wanted}")
            return default
        return value

    def flat(self, key: str, native: str, *kinds: type, reader: Reader | None = None) -> Any:
        """A key that is taken over as it is."""
        reader = reader or self.reader
        value = self.value(reader, key, *kinds)
        if value is not None:
            reader.tell(key, Fate.TAKEN, put(self.tree, native, value))
        return value

    def choice(self, key: str, known: Any) -> str | None:
        """A name that must be there, and be one of these."""
        value = self.value(self.reader, key, str)
        if key not in self.reader:
            self.reader.refuse(key, f"missing key; it is one of {', '.join(known)}")
        elif value is not None and value not in known:
            hint = near(value, known) or f" Known: {', '.join(known)}"
            self.reader.refuse(key, f"no such {key}.{hint}")
            return None
        return value
