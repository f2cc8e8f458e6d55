"""Progress of work on images: a bar in a terminal, a line now and then in a pipe."""

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selfsight.train.log import PLAIN_EVERY, console

BAR_EVERY = 0.1  # seconds


class ImageProgress:
    """How many images are done, how many a second, and the time that is left.

    Called with what is done (such as "packing train"), the images done, and all of them.
    """

    def __init__(self) -> None:
        self._what, self._spoke = "", 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:  # what was done before is not of this rate
            self._what, self._began, self._first, self._spoke = what, now, done, now
            self._begin(what, done, total)
        every = BAR_EVERY if self._bar else PLAIN_EVERY
        if done < total and now - self._spoke < every:
            return
        self._spoke = now
        words = []
        if done > self._first:  # at the first call nobody knows how long the work has taken
            rate = (done - self._first) / max(now - self._began, 1e-9)
            words = [f"{rate:.0f} images/s", f"{(total - done) / rate:.0f} s left"]
        if self._bar:
            self._bar.update(self._task, completed=done, rate="".join(words[:1]))
        else:
            console.print("  ".join([f"{what} {done:,}/{total:,}", *words]), soft_wrap=True)

    def _begin(self, what: str, done: int, total: int) -> None:
        if not console.is_terminal:
            return
        if self._bar is None:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            more = TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
            self._bar = Progress(*columns, *more, console=console)
            self._bar.start()
        self._task = self._bar.add_task(what, total=total, completed=done, rate="")
