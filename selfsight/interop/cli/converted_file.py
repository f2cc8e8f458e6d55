"""Configuration files of other systems, as the commands use them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsight.errors import UserError
from selfsight.interop.cli.processes import share_out

if TYPE_CHECKING:
    from selfsight.evaluate.protocols import Result
    from selfsight.interop.report import Converted, Entry
    from selfsight.pretraining.config import Composed


def open_file(path: Path, keys: list[str], opts: bool) -> "ConvertedFile | None":
    """A file of another system, or what `selfsight convert` made of one; None for another file.

    Raises: UserError if it holds a mistake.
    """
    from selfsight import interop
    from selfsight.interop import native

    if interop.recognise(path):
        return ConvertedFile(path, interop.convert(path, paired(keys, opts)))
    converted = None if opts else native.read(path, keys)
    return converted and ConvertedFile(path, converted)


class ConvertedFile:
    """A `selfsight.cli.files.ConfigFile` of another system."""

    def __init__(self, path: Path, converted: "Converted") -> None:
        self.path, self.converted, self.phase = path, converted, converted.phase

    def translated(self) -> Any:
        return translated(self.converted)

    def compose(self, run: str | None = None) -> "Composed":
        from selfsight.interop import native
        from selfsight.pretraining.config import compose

        self._check_phase("pretrain")
        tree = {"run": self.converted.run} | self.converted.tree
        return compose(None, native.arguments(tree), run, str(self.path))

    def start_processes(self, device: str) -> None:
        share_out(self.converted.processes, device)

    def evaluate(self, command: str, run: str | None = None) -> "list[Result]":
        self._check_phase(command)
        self.start_processes(self.converted.tree.get("device", "auto"))
        with self.translated():
            return run_evaluation(self.converted, run)

    def _check_phase(self, command: str) -> None:
        """`linear` also stands for `linear-augmented`: both train a linear classifier."""
        if (command, self.phase) == ("linear", "linear-augmented"):
            return
        if command != self.phase:
            raise UserError(
                f"this file is for `selfsight {self.phase}`; `selfsight run` finds that itself"
            )


def paired(words: list[str] | None, opts: bool) -> list[str]:
    """As key=value: with opts 'a.b' 'value' 'c=1', else as it is."""
    found, rest = [], list(words or [])
    if not opts:
        return rest
    while rest:
        word = rest.pop(0)
        if "=" not in word:
            if not rest:
                raise UserError(f"--opts {word}: has no value after it")
            word = f"{word}={rest.pop(0)}"
        found.append(word)
    return found


@contextmanager
def translated(converted: "Converted") -> Iterator[None]:
    """Re-raise a configuration error in terms of the original file: `x.ini:30: ssl_args.lr`."""
    try:
        yield
    except UserError as error:
        lines = str(error).splitlines()
        error.args = ("\n".join(_in_original_terms(converted, x) for x in lines),)
        raise


def _in_original_terms(converted: "Converted", line: str) -> str:
    """'optimizer.lr=-1.0: ...' as 'x.ini:30: ssl_args.lr=-1.0: optimizer.lr=-1.0: ...'."""
    from selfsight.interop.report import shown

    entry = next((entry for entry in converted.entries if entry.by and _gave(entry, line)), None)
    if entry is None:
        return line
    own = f"{entry.key}={shown(entry.value)}: "
    return f"{entry.where}: {own}{line.removeprefix(own)}"


def _gave(entry: "Entry", line: str) -> bool:
    """Whether a problem is about this entry's native key, a part of it, or its parent."""
    if line.startswith((f"{entry.by}: ", f"'{entry.by}': ")):
        return True
    native, key = entry.by.partition("=")[0], re.match(r"(?:Missing key ')?([\w.]*)", line)[1]
    leaf = native.rpartition(".")[2]
    named = f" {leaf}=" in line or leaf in line.rpartition(": ")[2]
    return f"{key}.".startswith(f"{native}.") or (native.startswith(f"{key}.") and named)


def validate_converted(converted: "Converted") -> None:
    """Check the native configuration. Raises: UserError for a value that no run would accept."""
    from selfsight.evaluate.protocols.config import compose_trained
    from selfsight.interop import native
    from selfsight.pretraining.config import compose

    keys = native.arguments(
        {"run": converted.run} | converted.tree if converted.phase == "pretrain" else converted.tree
    )
    with translated(converted):
        if converted.phase == "pretrain":
            compose(None, keys)
        else:
            compose_trained(converted.protocol or converted.phase, converted.phase, {}, 224, keys)


def run_evaluation(converted: "Converted", run: str | None) -> Any:
    from selfsight.evaluate import protocols as measure
    from selfsight.interop import native

    folder = run or converted.run
    if not converted.subject:
        raise UserError("the file does not say which encoder to measure")
    tree = _without_encoder(converted) if _is_ours(Path(converted.subject)) else converted.tree
    keys = native.arguments(tree)
    if converted.classifier:
        return measure.retest(converted.subject, converted.classifier, keys, folder)
    if converted.phase == "linear":
        return measure.linear(converted.subject, keys, folder)
    trained = {"linear-augmented": measure.linear_augmented, "finetune": measure.finetune}
    return trained[converted.phase](
        converted.subject, keys, folder, converted.protocol or converted.phase
    )


def _is_ours(path: Path) -> bool:
    from selfsight.encoders.artifact import is_ours

    return path.is_dir() or (path.is_file() and is_ours(path))


def _without_encoder(converted: "Converted") -> dict[str, Any]:
    """Compare the encoder in a file of Selfsight with the encoder that the file describes.

    Raises: UserError if it is another than the file describes.
    """
    from selfsight.encoders.artifact import encoder_file, read_network

    described = read_network(encoder_file(converted.subject)).description
    tree = {
        key: value for key, value in converted.tree.items() if key not in ("backbone", "format")
    }
    asked, there = converted.tree.get("backbone", {}).get("name"), described["backbone"]["name"]
    if asked not in (None, there):
        raise UserError(f"'{converted.subject}': holds a {there}, and the file is for a {asked}")
    return tree
