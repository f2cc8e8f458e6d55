"""What commands do with a configuration file of another system, or with what it became."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfsight.cli.app import continuing, print_from_first
from selfsight.errors import UserError
from selfsight.interop.cli.processes import share_out

if TYPE_CHECKING:
    from selfsight.interop.report import Converted, Entry
    from selfsight.pretraining.config import Composed

Opts = Annotated[
    bool, typer.Option("--opts", help="keys and values stand in turn: --opts trainer.max_epoch 5")
]


def read_job(
    file: str | Path, keys: list[str] | None = None, opts: bool = False
) -> "Converted | None":
    """The job that a file of another system, or of `selfsight convert`, describes; None for a recipe.

    Raises: UserError if it holds a mistake.
    """
    from selfsight import interop as dialects
    from selfsight.interop import native

    if dialects.recognise(file):
        return dialects.convert(file, paired(keys, opts))
    if opts:
        raise UserError(f"--opts: '{file}' is not a file of another system; give key=value")
    return native.read(Path(file), keys or [])


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


def evaluate_job(job: "Converted", command: str, run: str | None = None) -> None:
    """Evaluate as the file says, and print the outcome.

    Args:
        command: the one that was typed, which must be the file's.
        run: a folder in place of the file's.
    """
    _check_phase(job, command)
    share_out(job.processes, job.tree.get("device", "auto"))
    with continuing(), in_its_words(job):
        print_from_first(_evaluate(job, run))


def _check_phase(job: "Converted", command: str) -> None:
    """`linear` also stands for `linear-augmented`: both train a linear classifier."""
    fits = command == job.phase or (command, job.phase) == ("linear", "linear-augmented")
    if not fits:
        raise UserError(
            f"this file is for `selfsight {job.phase}`; `selfsight run` finds that itself"
        )


@contextmanager
def in_its_words(job: "Converted | None") -> Iterator[None]:
    """A problem with a native value is told with the key of the file that it comes from."""
    try:
        yield
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join(_said_of(job, x) for x in lines) if job else str(error)) from None


def _said_of(job: "Converted", line: str) -> str:
    """'optimizer.lr=-1.0: ...' as 'x.ini:30: ssl_args.lr=-1.0: optimizer.lr=-1.0: ...'."""
    from selfsight.interop.report import shown

    entry = next((entry for entry in job.entries if entry.by and _gave(entry, line)), None)
    if entry is None:
        return line
    own = f"{entry.key}={shown(entry.value)}: "
    return f"{entry.where}: {own}{line.removeprefix(own)}"


def _gave(entry: "Entry", line: str) -> bool:
    """Whether a problem is with what this key became, with a part of it, or with what holds it."""
    if line.startswith((f"{entry.by}: ", f"'{entry.by}': ")):
        return True
    native, key = entry.by.partition("=")[0], re.match(r"(?:Missing key ')?([\w.]*)", line)[1]
    held = native.startswith(f"{key}.") and native.rpartition(".")[2] in line.rpartition(": ")[2]
    return f"{key}.".startswith(f"{native}.") or held


def composed(what: str, overrides: list[str] | None) -> "Composed":
    """The configuration of a recipe, of a YAML file, or of another system's file.

    Raises: UserError for a mistake, or for a file that describes no pretraining.
    """
    job = read_job(what, overrides)
    with in_its_words(job):
        return compose_job(job, what, overrides)


def compose_job(
    job: "Converted | None", what: str, overrides: list[str] | None, run: str | None = None
) -> "Composed":
    """The same of what `read_job` has read."""
    from selfsight.interop import native
    from selfsight.pretraining.config import compose

    if job is None:
        return compose(what, overrides, run)
    _check_phase(job, "pretrain")
    return compose(None, native.arguments({"run": job.run} | job.tree), run, what)


def check(job: "Converted") -> None:
    """Raises: UserError for a value that the conversion takes over and no run would."""
    from selfsight.evaluate.protocols.config import compose_trained
    from selfsight.interop import native
    from selfsight.pretraining.config import compose

    keys = native.arguments({"run": job.run} | job.tree if job.phase == "pretrain" else job.tree)
    with in_its_words(job):
        if job.phase == "pretrain":
            compose(None, keys)
        else:
            compose_trained(job.protocol or job.phase, job.phase, {}, 224, keys)


def _evaluate(job: "Converted", run: str | None) -> Any:
    from selfsight.evaluate import protocols as measure
    from selfsight.interop import native

    folder = run or job.run
    if not job.subject:
        raise UserError("the file does not say which encoder to measure")
    tree = _without_encoder(job) if _is_ours(Path(job.subject)) else job.tree
    keys = native.arguments(tree)
    if job.classifier:
        return measure.retest(job.subject, job.classifier, keys, folder)
    if job.phase == "linear":
        return measure.linear(job.subject, keys, folder)
    trained = {"linear-augmented": measure.linear_augmented, "finetune": measure.finetune}
    return trained[job.phase](job.subject, keys, folder, job.protocol or job.phase)


def _is_ours(path: Path) -> bool:
    from selfsight.encoders.artifact import is_ours

    return path.is_dir() or (path.is_file() and is_ours(path))


def _without_encoder(job: "Converted") -> dict[str, Any]:
    """Selfsight's own files say themselves which encoder they hold and for which size.

    Raises: UserError if it is another than the file describes.
    """
    from selfsight.encoders.artifact import encoder_file, read_network

    described = read_network(encoder_file(job.subject)).description
    tree = {key: value for key, value in job.tree.items() if key not in ("backbone", "format")}
    asked, there = job.tree.get("backbone", {}).get("name"), described["backbone"]["name"]
    if asked not in (None, there):
        raise UserError(f"'{job.subject}': holds a {there}, and the file is for a {asked}")
    return tree
