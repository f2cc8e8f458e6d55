"""What a run shows: metrics.jsonl for programs, progress on the console for people."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.segment import Segment
from rich.text import Text

from selfsight.data.source import Source, notes
from selfsight.errors import printable
from selfsight.files import are_numbers, naming, open_plain, write_text
from selfsight.locks import check_folder
from selfsight.logging.notebook import NotebookBar

PLAIN_EVERY = 10.0  # seconds between two lines in a pipe
TIMES = ("epoch", "seconds")  # numbers of every record; others may be null
BAR_EVERY = 0.1  # seconds between two updates of a bar


class Console(rich.console.Console):
    """Prints text as it is, but for control codes in names, which are shown and not obeyed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)  # here too: columns are measured

    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        for segment in super().render(*arguments, **options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=printable(segment.text))


console = Console(stderr=True)


def say(text: str) -> None:
    """Print a line, which is not cut however long it is."""
    console.print(text, soft_wrap=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that a crash cut short, or a damaged one, is left out.

    Raises: Damaged if the file is a folder, a pipe or the like.
    """
    return [record for record in map(_record, _lines(path)) if record is not None]


def _lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with open_plain(path) as file:
        return file.read().splitlines()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    whole = are_numbers(record) and all(record.get(key, 0) is not None for key in TIMES)
    return record if whole else None


def print_notes(source: Source) -> None:
    """Print what a user should know about the images."""
    for note in notes(source):
        console.print(note, soft_wrap=True, markup=False)


class MetricsFile:
    """metrics.jsonl, an object a line. Resuming drops the lines after its step; they come again.

    A file with damaged lines, but for the last, is kept under another name.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        damaged = sum(_record(line) is None for line in _lines(path)[:-1])
        if damaged:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.copyfile(path, aside)
            say(f"{damaged} lines of '{path}' are damaged and left out; see '{aside}'")
        kept = [r for r in read_metrics(path) if r["step"] <= resume_step]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        """Raises: OSError that names the file if the disk is full: no half line is left; UserError
        if the run's folder was deleted or renamed."""
        check_folder(self._path)
        line = json.dumps(record).encode() + b"\n"
        with naming(self._path, len(line)):
            end = self._file.seek(0, os.SEEK_END)
            try:
                while line:  # a write may take a part of it
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(end)
                raise

    def close(self) -> None:
        self._file.close()


class Progress:
    """Progress of long work: a bar in a terminal or a notebook, in a pipe a line now and then; or
    nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._what = quiet, ""
        self._bar: Bar | None = None
        self._notebook: NotebookBar | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, what: str, done: int, total: int) -> None:
        """Name the work, and how much of it was done before."""
        self._what, self._first, self._total = what, done, total
        self._began = self._shown = time.monotonic()
        if console.is_jupyter and not self._quiet:
            self._notebook = NotebookBar()
            return
        if self._quiet or not console.is_terminal:
            return
        if self._bar is None:
            texts = [
                TextColumn("{task." + field + "}") for field in ("description", "fields[text]")
            ]
            columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn()
            self._bar = Bar(*columns, console=console)
            self._bar.start()
        self._task = self._bar.add_task(what, total=total, completed=done, text="")

    def update(self, done: int, *words: str) -> None:
        """Show how much is done, and what else is to say, unless something was shown just now."""
        now = time.monotonic()
        every = BAR_EVERY if self._bar or self._notebook else PLAIN_EVERY
        if self._quiet or (done < self._total and now - self._shown < every):
            return
        self._shown = now
        if self._bar:
            self._bar.update(self._task, completed=done, text="  ".join(words))
            return
        if self._notebook:
            self._notebook.update(self._what, self._first, done, self._total, words)
            return
        if done > self._first:  # else nothing was measured
            left = (now - self._began) / (done - self._first) * (self._total - done)
            words = (*words, f"{left:.0f} s left")
        line = "  ".join([f"{self._what} {done:,}/{self._total:,}", *words])
        console.print(line, soft_wrap=True)

    def work(self, what: str, done: int, total: int) -> None:
        """As `begin` and `update` for work of one kind after another, with the time left."""
        if what != self._what:
            self.begin(what, 0, total)
        self.update(done)

    def images(self, what: str, done: int, total: int) -> None:
        """As `begin` and `update` for work on images, with the rate of what was done since."""
        if what != self._what:
            self.begin(what, done, total)
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (done - self._first) / seconds
        self.update(done, *([f"{rate:.0f} images/s"] if done > self._first else []))


class TrainingProgress(Progress):
    """Progress of a training, in the words of its records."""

    def __init__(self, steps: int, steps_per_epoch: int, start: int, quiet: bool) -> None:
        super().__init__(quiet)
        self._per_epoch, self._epochs = steps_per_epoch, math.ceil(steps / steps_per_epoch)
        self._knn: float | None = None  # of the latest evaluation
        self.begin("step", start, steps)

    def record(self, step: int, record: dict[str, Any]) -> None:
        """Show a record of metrics.jsonl."""
        self._knn = record.get("knn", self._knn)
        epoch = min(self._epochs, (step - 1) // self._per_epoch + 1)
        words = [f"epoch {epoch}/{self._epochs}", f"loss {record['loss']:.4f}"]
        if self._knn is not None:
            words.append(f"knn {self._knn:.1%}")
        if "probe_top1" in record:
            words.append(f"probe {record['probe_top1']:.1%}")
        self.update(step, *words, f"{record['images_per_second']:.0f} images/s")
