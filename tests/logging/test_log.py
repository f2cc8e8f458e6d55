"""Names may hold the codes that a terminal obeys; what is printed and stored shows them."""

import io

import pytest

from selfsight import cli
from selfsight.data.bad import BadImages, read_bad
from selfsight.data.source import BadImage
from selfsight.errors import UserError, printable
from selfsight.logging.log import Console
from selfsight.report.console import table

CODES = {
    "\x1b[2J": "\\x1b[2J",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b31m": "\\x9b31m",
    "\r": "\\r",
    "\x00": "\\x00",
    "\x7f": "\\x7f",
    "a\u202egnp.exe": "a\\u202egnp.exe",
}


@pytest.mark.parametrize("code", CODES)
def test_control_codes_are_shown(code, capsys, monkeypatch, tmp_path):
    shown = CODES[code]
    assert printable(f"é {code}\t\n中") == f"é {shown}\t\n中"
    for terminal in (True, False):
        for what in (f"'{code}'", table(["name"], [[code]], fixed=1)):
            file = io.StringIO()
            Console(file=file, force_terminal=terminal, color_system=None).print(what)
            assert shown in file.getvalue()
            assert code.strip("a") not in file.getvalue()

    def refuse(**_):
        raise UserError(f"'{code}': no such file")

    monkeypatch.setattr("selfsight.cli.app.app", refuse)
    monkeypatch.setattr(cli, "register_all", lambda: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"selfsight: '{shown}': no such file\n"
    if code != "\r":  # a line there is a line of the file
        BadImages(tmp_path / "bad.txt", 9, 1.0).note(BadImage(code, code))
        assert read_bad(tmp_path / "bad.txt") == [f"{shown}\t{shown}"]


def test_brackets_in_names_are_no_markup():
    file = io.StringIO()
    Console(file=file).print("'[/red] [bold]x'")
    assert file.getvalue() == "'[/red] [bold]x'\n"
