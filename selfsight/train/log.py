"""What a run tells: metrics.jsonl for programs, a bar in a terminal, plain lines in a pipe."""

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from selfsight.files import write_text

PLAIN_EVERY = 10.0  # seconds between two lines in a pipe

console = Console(stderr=True, highlight=False)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that a crash cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class MetricsFile:
    """metrics.jsonl, an object a line. Resuming drops the lines after its step; they come again."""

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = [r for r in read_metrics(path) if r["step"] <= resume_step]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Display:
    """Progress on the console; silent where told so."""

    def __init__(self, steps: int, steps_per_epoch: int, start: int, quiet: bool) -> None:
        self._steps, self._per_epoch, self._quiet = steps, steps_per_epoch, quiet
        self._started, self._start, self._spoke = time.perf_counter(), start, 0.0
        self._knn: float | None = None  # of the latest check
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("training", total=steps, completed=start, text="")
            self._bar.start()

    def update(self, step: int, record: dict[str, Any], last: bool) -> None:
        """After a logged step."""
        if self._quiet:
            return
        if "knn" in record:
            self._knn = record["knn"]
        text = self._describe(step, record)
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.perf_counter()
        if last or now - self._spoke >= PLAIN_EVERY:
            self._spoke = now
            done = max(1, step - self._start)
            left = (now - self._started) / done * (self._steps - step)
            console.print(f"step {step}/{self._steps}  {text}  {left:.0f} s left", soft_wrap=True)

    def _describe(self, step: int, record: dict[str, Any]) -> str:
        epochs = math.ceil(self._steps / self._per_epoch)
        words = [f"epoch {min(epochs, (step - 1) // self._per_epoch + 1)}/{epochs}"]
        words.append(f"loss {record['loss']:.4f}")
        if self._knn is not None:
            words.append(f"knn {self._knn:.1%}")
        if "probe_top1" in record:
            words.append(f"probe {record['probe_top1']:.1%}")
        return "  ".join([*words, f"{record['images_per_second']:.0f} images/s"])

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
