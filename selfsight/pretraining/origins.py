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
        latest = {k: n for n, (k, _) in enumerate(self._records) if k in (key, other)}
        return key not in latest or (self.of(key) != self.of(other) and latest[key] < latest[other])

    def of(self, key: str) -> str:
        return next((o for k, o in reversed(self._records) if is_inside(key, k)), "default")
