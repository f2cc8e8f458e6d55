"""Where a training is: events that a stopwatch can listen to. By default nobody does."""


class Events:
    """Receives what happens in a training; each method does nothing unless it is overridden."""

    def mark(self, part: str) -> None:
        """The main thread has spent the time since the last mark on this part of a step:
        waiting for data, transfer, views, forward, backward, optimizer, teacher, evaluation, or
        log, save."""

    def step(self) -> None:
        """The update of a step is complete; it is not yet logged."""

    def worked(self, kind: str, seconds: float) -> None:
        """A loading thread has worked so long on kind: decode or crops."""


SILENT = Events()
