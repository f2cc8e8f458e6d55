"""What the parts of a UP file are read into, and how its values are checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from selfsight.config import Tree, near
from selfsight.interop.report import Fate, Phase, Reader, put

TAKEN, REPLACED, NOTHING = Fate.TAKEN, Fate.REPLACED, Fate.WITHOUT_EFFECT


@dataclass
class Draft:
    """The native file so far.

    Attributes:
        phase: the command that will run it.
        wrapper: UP's name of the method that pretrains, as the file has it.
        processes: that share a batch; UP's batch size is that of one.
        adaptive: the optimizer's steps do not depend on the scale of the loss.
        epochs: of training, where the file says it.
        lr: the peak rate, or that of one image.
        per_image: lr is that of one image.
    """

    phase: Phase
    wrapper: str | None = None
    processes: int = 1
    tree: Tree = field(default_factory=dict)
    run: str | None = None
    subject: str | None = None
    adaptive: bool = False
    epochs: float | None = None
    lr: float | None = None
    per_image: bool = False

    @property
    def pretrains(self) -> bool:
        return self.phase == "pretrain"

    def put(self, key: str, value: Any) -> str:
        """Set a native key; returns 'key=value' for the report."""
        return put(self.tree, key, value)


def _checked(kind: str, fits: Callable[[Any], bool]) -> Callable[..., Any]:
    def read(self: "Keys", key: str, default: Any = None) -> Any:
        found = self.value(key)
        if found is not None and not fits(found):
            self.refuse(key, f"expected {kind}")
        return found if found is not None and fits(found) else default

    return read


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _are_numbers(x: Any) -> bool:
    return isinstance(x, list) and all(map(_is_number, x))


class Keys(Reader):
    """A mapping of a UP file, and the draft `d` that its keys go into.

    `number` to `triple` read a value of a kind, and give the default for one that is absent, empty
    or refused.
    """

    def __init__(self, tree: Tree, d: Draft, *of_reader: Any) -> None:
        super().__init__(tree, *of_reader)
        self.d = d

    def inside(self, key: str) -> "Keys":
        return self._below(super().inside(key))

    def each(self, key: str) -> "list[Keys]":
        return [self._below(one) for one in super().each(key)]

    def _below(self, r: Reader) -> "Keys":
        return Keys(r.tree, self.d, "", {}, r.prefix, self.log)

    def value(self, key: str, default: Any = None) -> Any:
        """Any value; an empty one is as good as none."""
        found = self.take(key)
        if key in self and found is None:
            self.tell(key, NOTHING, why="it is empty")
        return default if found is None else found

    number = _checked("a number", _is_number)
    positive = _checked("a number above 0", lambda x: _is_number(x) and x > 0)
    whole = _checked(
        "a whole number, 0 or more", lambda x: _is_number(x) and x == int(x) and x >= 0
    )
    flag = _checked("true or false", lambda x: isinstance(x, bool))
    text = _checked("a text", lambda x: isinstance(x, str))
    numbers = _checked("a list of numbers", _are_numbers)
    pair = _checked("two numbers", lambda x: _are_numbers(x) and len(x) == 2)
    triple = _checked("three numbers", lambda x: _are_numbers(x) and len(x) == 3)

    def carry(
        self,
        key: str,
        native: str,
        read: Callable[..., Any] = number,
        default: Any = None,
        why: str = "",
    ) -> Any:
        """A value that goes over as it is, or UP's own default of it; returns the value.

        Args:
            why: of a native key that does not do quite the same.
        """
        found = read(self, key, default)
        if found is not None:
            by = self.d.put(native, found)
            if self.tree.get(key) is not None:
                self.tell(key, REPLACED if why else TAKEN, by, why)
        return found

    def only(self, key: str, allowed: tuple, why: str, otherwise: str) -> None:
        """A key that may say what holds anyway, and nothing else.

        Args:
            why: of the report; otherwise: why another value cannot be had.
        """
        found = self.value(key)
        if found is None:
            return
        if any(found == one and type(found) in (type(one), int, float) for one in allowed):
            self.tell(key, TAKEN, why=why)
        else:
            self.refuse(key, otherwise)

    def ignore(self, why: str, *keys: str) -> None:
        """Keys that change nothing here."""
        for key in keys:
            self.tell(key, NOTHING, why=why)

    def choose(self, key: str, known: dict | tuple, what: str, default: Any = None) -> Any:
        """One of the names known; another is refused with the nearest, and None comes back."""
        name = self.value(key, default)
        if isinstance(name, str) and name in known:
            return name
        if name is not None:
            hint = near(str(name), known)
            self.refuse(key, f"no such {what} here.{hint} Known: {', '.join(known)}")
        return None

    def kind(self, known: dict | tuple, what: str, key: str = "type") -> Any:
        """What an entry is. Without a known name it is refused, and nothing else of it is read."""
        name = self.choose(key, known, what)
        if name is None and self:
            if self.tree.get(key) is None:
                self.refuse(key, f"name the {what}: {', '.join(known)}")
            self.skip()
        return name

    def skip(self) -> None:
        """What an entry holds that is refused needs no story of its own."""
        self.ignore("of an entry that is refused", *self.tree)
