"""Read another system's file key by key, and record the result for each key.

Most keys are rows of tables, which `Section.read` applies.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from selfsight.config import Tree, near
from selfsight.errors import UserError
from selfsight.interop.kinds import find_kind
from selfsight.interop.report import Converted, Entry, Fate, shown

TAKEN, REPLACED, UNUSED = Fate.TAKEN, Fate.REPLACED, Fate.WITHOUT_EFFECT


# A table: each row is the name of a method of `Section` and its arguments, for example
# ("copy", "m", "method.momentum", "number", 0.999).
Rows = Iterable[tuple]


@dataclass
class _Log:
    """What all sections of one file share.

    Attributes:
        lines: dotted key -> line number, where known.
        asked: prefix -> names that a reader looked up.
        pending: values that were read and have no entry yet.
        problems: dotted key -> the first reason why it is refused.
    """

    file: str
    lines: dict[str, int]
    asked: dict[str, set[str]] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


Out = TypeVar("Out", bound=Converted)


class Section(Generic[Out]):
    """A mapping of the original file.

    Each key that is read must be recorded (`record`, `set`, `copy`, `fixed`, `ignore`) or refused.
    `finish` raises all refusals and all unknown keys at once.

    Attributes:
        tree: the mapping; `out`: the native configuration; `file`: path for messages.
    """

    def __init__(self, tree: Tree, out: Out, log: _Log, prefix: str = "") -> None:
        self.tree, self.out, self.prefix, self._log = tree, out, prefix, log
        log.asked.setdefault(prefix, set())

    @classmethod
    def of_file(cls, tree: Tree, out: Out, file: str, lines: dict[str, int]) -> Self:
        """The whole file; `lines`: dotted key -> its line number."""
        return cls(tree, out, _Log(file, lines))

    @property
    def file(self) -> str:
        return self._log.file

    def __contains__(self, key: str) -> bool:
        return key in self.tree

    def __bool__(self) -> bool:
        return bool(self.tree)

    def _ask(self, key: str) -> str:
        """Record that the format has this key. Returns: its dotted name."""
        self._log.asked[self.prefix].add(key)
        return f"{self.prefix}{key}"

    # Values -------------------------------------------------------------------------------------

    def value(self, key: str, kind: str | None = None, default: Any = None) -> Any:
        """The value of a key; the default if it is absent or empty, or is refused by its kind."""
        path, found = self._ask(key), self.tree.get(key)
        if found is None or found == "":
            self.record(key, UNUSED, why="it is empty")
            return default
        if path not in self._log.entries:
            self._log.pending.setdefault(path, found)
        expected, accepts = find_kind(kind) if kind else ("", lambda x: True)
        if not accepts(found):
            mark = "@" if expected.startswith("@") else "type "
            self.refuse(key, f"expected {expected}, found {mark}{type(found).__name__}")
            return default
        return found

    def choose(
        self, key: str, known: Iterable[str], what: str, default: Any = None, needed: bool = False
    ) -> Any:
        """One of the known names; None if it is absent, or is refused."""
        name = self.value(key, default=default)
        if str(name) in known:
            return str(name)
        if name is not None:
            hint = near(str(name), known)
            self.refuse(key, f"no such {what}.{hint} Known: {', '.join(known)}")
        elif needed:
            self.refuse(key, f"missing; name the {what}: {', '.join(known)}")
        return None

    def rename(
        self, key: str, native: str, names: dict[str, Any], why: str = "", fate: Fate | None = None
    ) -> Any:
        """Set a native key to another name of this key's value; returns the native name.

        Args:
            names: the original names and the native ones.
            why: reason for another name, or for any with a `fate`.
        """
        name = self.choose(key, names, key)
        if name is None:
            return None
        self.set(key, native, names[name], why if fate or names[name] != name else "", fate)
        return names[name]

    def kind(self, known: Iterable[str], what: str, key: str = "type") -> Any:
        """The type of an entry; without a known one the rest of the entry is not read."""
        name = self.choose(key, known, what, needed=bool(self))
        if name is None:
            self.skip()
        return name

    # What becomes of keys -----------------------------------------------------------------------

    def record(self, key: str, fate: Fate, by: str = "", why: str = "") -> None:
        """Record the result for a key; does nothing for a key that the file does not have."""
        path = self._ask(key)
        if key in self.tree:
            self._log.pending.pop(path, None)
            self._log.entries[path] = Entry(path, self.tree[key], fate, by, why, self._where(path))

    def refuse(self, key: str, why: str) -> None:
        """Refuse a value, with the reason and what to write instead; the first reason stays."""
        path = self._ask(key)
        self._log.pending.pop(path, None)
        text = f"{path}={self.tree[key]}" if key in self.tree else path
        self._log.problems.setdefault(path, f"{self._where(path)}: {text}: {why}")

    def set(
        self, key: str, native: str, value: Any, why: str = "", fate: Fate | None = None
    ) -> str:
        """Set a native key in place of this one; returns 'native=value'.

        Args:
            why: how the native key differs.
            fate: by default TAKEN without `why`, REPLACED with it.
        """
        by = self.out.put(native, value)
        self.record(key, fate or (REPLACED if why else TAKEN), by, why)
        return by

    def copy(
        self, key: str, native: str, kind: str = "number", default: Any = None, why: str = ""
    ) -> Any:
        """Set a native key to this key's value, or to the original's default; returns the value."""
        found = self.value(key, kind, default)
        if found is not None and self.tree.get(key) in (None, ""):
            self.out.put(native, found)
        elif found is not None:
            self.set(key, native, found, why)
        return found

    def fixed(self, key: str, allowed: tuple, why: str) -> None:
        """Accept only values that ask for what Selfsight always does, which `why` describes."""
        found = self.value(key)
        if found is None:
            return
        if any(found == one and type(found) in (type(one), int, float) for one in allowed):
            self.record(key, TAKEN, why=why)
        else:
            self.refuse(key, f"must be {' or '.join(map(shown, allowed))}, or be removed: {why}")

    def ignore(self, why: str, *keys: str) -> None:
        """Record keys without effect."""
        for key in keys:
            self.record(key, UNUSED, why=why)

    def skip(self) -> None:
        """Skip all keys of a refused entry."""
        self.ignore("the entry is refused", *self.tree)

    def read(self, rows: Rows) -> None:
        """Apply the rows of a table."""
        for method, *arguments in rows:
            getattr(self, method)(*arguments)

    def put(self, native: str, value: Any) -> None:
        """Set a native key; a row for what an entry always sets."""
        self.out.put(native, value)

    def apply(self, read: Callable[[Self], None]) -> None:
        """Call a function with this section; a row for keys that depend on each other."""
        read(self)

    def within(self, key: str, rows: Rows) -> None:
        """Apply rows to the mapping below a key."""
        self.inside(key).read(rows)

    # Nested mappings ----------------------------------------------------------------------------

    def _below(self, key: str, expected: str, accepts: Callable[[Any], bool]) -> Any:
        below, path = self.tree.get(key), self._ask(key)
        if below is not None and not accepts(below):
            self.refuse(key, f"expected {expected}")
        elif not below and path not in self._log.problems:
            self.record(key, UNUSED, why="it is empty")
        return below if below and accepts(below) else None

    def inside(self, key: str) -> Self:
        """The mapping below a key; an empty one if the key is absent or empty."""
        below = self._below(key, "keys below it", lambda x: isinstance(x, dict))
        return type(self)(below or {}, self.out, self._log, f"{self.prefix}{key}.")

    def each(self, key: str) -> list[Self]:
        """The mappings in a list below a key."""
        below = self._below(
            key,
            "a list of mappings",
            lambda x: not x or (isinstance(x, list) and all(isinstance(one, dict) for one in x)),
        )
        prefix = f"{self.prefix}{key}."
        make = type(self)
        return [
            make(one, self.out, self._log, f"{prefix}{n}.") for n, one in enumerate(below or [])
        ]

    # The whole file -----------------------------------------------------------------------------

    def _where(self, path: str) -> str:
        """The file, with the line of a dotted key, or of the value that holds it, if known."""
        while path and path not in self._log.lines:
            path = path.rpartition(".")[0]
        return f"{self.file}:{self._log.lines[path]}" if path else self.file

    def finish(self) -> list[Entry]:
        """The entries of the whole file, in its order.

        Raises: UserError that lists every refused value and every unknown key, a line each.
        """
        log, order = self._log, list(self._recorded_keys(self.tree, self.prefix))
        for path in order:
            if path not in {*log.entries, *log.problems, *log.pending}:
                log.problems[path] = self._unknown(path)
        if log.problems:
            raise UserError("\n".join(log.problems.values()))
        if log.pending:
            raise AssertionError(f"{list(log.pending)}: read, but not recorded")
        return [log.entries[path] for path in order]

    def _recorded_keys(self, tree: Any, prefix: str) -> Iterable[str]:
        """The dotted keys that need an entry: leaves, and what was recorded as a whole."""
        log = self._log
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            path = f"{prefix}{key}"
            whole = path in log.entries or path in log.pending or path in log.problems
            opened = any(asked.startswith(f"{path}.") for asked in log.asked)
            if not whole and opened and isinstance(value, (dict, list)) and value:
                yield from self._recorded_keys(value, f"{path}.")
            else:
                yield path

    def _unknown(self, path: str) -> str:
        asked = self._log.asked
        prefix = max((p for p in asked if path.startswith(p)), key=len)
        name, names = path.removeprefix(prefix).partition(".")[0], sorted(asked[prefix])
        elsewhere = [f"{p}{name}" for p, names in asked.items() if name in names]
        hint = near(name, names) or (f" Did you mean '{elsewhere[0]}'?" if elsewhere else "")
        hint = hint or (f" Known here: {', '.join(names)}." if names else "")
        return f"{self._where(path)}: unknown key '{path}'.{hint}"
