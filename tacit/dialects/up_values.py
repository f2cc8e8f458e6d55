"""What the parts of a UP file are read into, and how single values are read and checked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tacit.config import Tree, near
from tacit.dialects.report import Fate, Phase, Reader, put

TAKEN, REPLACED, NOTHING = Fate.TAKEN, Fate.REPLACED, Fate.WITHOUT_EFFECT


@dataclass
class Draft:
    """The native file so far.

    Attributes:
        phase: the command that will run it.
        processes: that share a batch; UP's batch size is that of one.
        adaptive: the optimizer's steps do not depend on the scale of the loss.
        epochs: of training, where the file says it.
        lr: the peak rate, or that of one image.
        per_image: lr is that of one image.
    """

    phase: Phase
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


def value(r: Reader, key: str, default: Any = None) -> Any:
    """Any value; an empty one is as good as none."""
    found = r.take(key, default)
    if key in r and found is None:
        r.tell(key, NOTHING, why="it is empty")
        return default
    return found


def _checked(kind: str, fits: Callable[[Any], bool]) -> Callable[..., Any]:
    def read(r: Reader, key: str, default: Any = None) -> Any:
        found = value(r, key, default)
        if key in r and r.tree[key] is not None and not fits(found):
            r.refuse(key, f"expected {kind}")
            return default
        return found

    return read


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _pair(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(map(_is_number, x))


number = _checked("a number", _is_number)
whole = _checked(
    "a whole number, 0 or more",
    lambda x: _is_number(x) and x == int(x) and x >= 0,
)
positive = _checked("a number above 0", lambda x: _is_number(x) and x > 0)
flag = _checked("true or false", lambda x: isinstance(x, bool))
text = _checked("a text", lambda x: isinstance(x, str))
pair = _checked("two numbers", _pair)
numbers = _checked("a list of numbers", lambda x: isinstance(x, list) and all(map(_is_number, x)))
three = _checked(
    "three numbers", lambda x: isinstance(x, list) and len(x) == 3 and all(map(_is_number, x))
)
anything = value


def carry(
    r: Reader,
    d: Draft,
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
    found = read(r, key, default)
    if found is not None:
        by = d.put(native, found)
        if r.tree.get(key) is not None:
            r.tell(key, REPLACED if why else TAKEN, by, why)
    return found


def only(r: Reader, key: str, allowed: tuple, why: str, otherwise: str) -> Any:
    """A key that may say what holds anyway, and nothing else.

    Args:
        why: of the report; otherwise: why another value cannot be had.
    """
    found = value(r, key)
    if key not in r or found is None:
        return found
    if any(found == one and type(found) in (type(one), int, float) for one in allowed):
        r.tell(key, TAKEN, why=why)
    else:
        r.refuse(key, otherwise)
    return found


def ignore(r: Reader, why: str, *keys: str) -> None:
    """Keys that change nothing here."""
    for key in keys:
        r.take(key)
        r.tell(key, NOTHING, why=why)


def choose(r: Reader, key: str, known: dict | tuple | list, what: str, default: Any = None) -> Any:
    """A name out of those known; another is refused with the nearest. None if it was refused."""
    name = value(r, key, default)
    if name in known if isinstance(name, str) else False:
        return name
    if name is not None:
        r.refuse(key, f"no such {what} here.{near(str(name), known)} Known: {', '.join(known)}")
    return None
