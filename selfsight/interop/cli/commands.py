"""Commands for the configuration files of other systems."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import OTHER, continuing, print_from_first
from selfsight.cli.files import Opts, open_file
from selfsight.cli.pretraining import pretrain_file
from selfsight.errors import UserError
from selfsight.interop.cli.converted_file import paired, validate_converted


def add_to(app: typer.Typer) -> None:
    for command in (run, convert):
        app.command(context_settings=PASS_ON, rich_help_panel=OTHER)(command)


PASS_ON = {"ignore_unknown_options": True}  # a value may begin with a minus: --opts seed -1
Keys = Annotated[
    list[str] | None,
    typer.Argument(help="key=value in the file's own keys: ssl_args.lr=0.3, trainer.max_epoch=5"),
]


def run(
    file: Annotated[
        str | None,
        typer.Argument(help="a file of another system, or a recipe (default: CONFIGER_PATH)"),
    ] = None,
    keys: Keys = None,
    opts: Opts = False,
    folder: Annotated[str | None, typer.Option("--run", help="folder of the run")] = None,
) -> None:
    """Run what a file describes, pretraining or an evaluation; also files of other systems."""
    usual = os.environ.get("CONFIGER_PATH")
    if usual and (file is None or (("=" in file or opts) and not Path(file).exists())):
        file, keys = usual, [*([file] if file else []), *(keys or [])]
    if file is None:
        raise UserError("name a file: selfsight run pretrain/simclr.ini, or set CONFIGER_PATH")
    opened = open_file(file, keys, opts)
    if opened.phase == "pretrain":
        return pretrain_file(opened, folder)
    with continuing():
        print_from_first(opened.evaluate(opened.phase, folder))


def convert(
    file: Annotated[Path, typer.Argument(help="a file of United Perception or Lightweight-SSL")],
    keys: Keys = None,
    opts: Opts = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="YAML file for `selfsight run`")
    ] = None,
) -> None:
    """Convert another system's file to a native one, and print the result for each key."""
    from selfsight import interop as dialects
    from selfsight.files import write_text
    from selfsight.interop import native
    from selfsight.interop.report import shown
    from selfsight.report.console import print_columns

    converted = dialects.convert(file, paired(keys, opts))
    validate_converted(converted)
    if output is not None and output.exists() and not native.is_converted(output):
        raise UserError(
            f"--output {output}: exists and was not written by `selfsight convert`; choose "
            f"another name"
        )
    rows = [
        [entry.key, shown(entry.value), str(entry.fate), entry.by, entry.why]
        for entry in converted.entries
    ]
    print_columns(("key", "value", "result", "native key", "reason"), rows, 1)
    if output is None:
        print(f"Run it with: selfsight run {shlex.quote(str(file))}", file=sys.stderr)
        return
    write_text(output, native.to_yaml(converted, str(file)))
    said_so = f"Wrote {output}. Run it with: selfsight run {shlex.quote(str(output))}"
    print(said_so, file=sys.stderr)
