"""A progress bar in a notebook, which stays in its file as it was last."""

import html
import time
from typing import Any


class NotebookBar:
    """One line of HTML that is replaced: no widget, so that it is seen without a kernel, too."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle: Any = display(HTML(""), display_id=True)
        self._began = time.monotonic()

    def update(self, what: str, first: int, done: int, total: int, words: tuple[str, ...]) -> None:
        """Show how much is done, and what else is to say."""
        seconds = time.monotonic() - self._began
        left = seconds / (done - first) * (total - done) if done > first else None
        times = f"{seconds:.0f} s" if not left else f"{seconds:.0f} s, {left:.0f} s left"
        text = html.escape("  ".join([f"{what} {done:,}/{total:,}", *words, times]))
        bar = f'<progress value="{done}" max="{total}" style="width:12em"></progress>'
        self._handle.update(self._html(f'{bar} <code style="white-space:pre-wrap">{text}</code>'))
