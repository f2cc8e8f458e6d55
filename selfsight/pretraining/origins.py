"""Which layer of a configuration set each of its values."""

from selfsight.config import Tree, flatten, is_inside


class Origins:
    """The origin of each value: the last layer that set it, or that replaced a section it is in."""

    def __init__(self) -> None:
        self._records: list[tuple[str, str]] = []

    def record(self, tree: Tree, origin: str) -> None:
        self._records += [(key, origin) for key, _ in flatten(tree)]

    def forget(self, section: str) -> None:
        self._records = [(k, o) for k, o in self._records if not is_inside(k, section)]

    def is_below(self, key: str, other: str) -> bool:
        """Whether a key was set by a layer below the one that set the other key, or by none."""
        mine, others = self._latest(key), self._latest(other)
        return mine is None or (others is not None and mine[1] != others[1] and mine < others)

    def _latest(self, section: str) -> tuple[int, str] | None:
        """Number and origin of the last record of a key, or of a key in it."""
        found = ((n, o) for n, (k, o) in enumerate(self._records) if is_inside(k, section))
        return max(found, default=None)

    def of(self, key: str) -> str:
        return next((o for k, o in reversed(self._records) if is_inside(key, k)), "default")
