"""The Dockerfile holds only commands that are tested elsewhere, and gets the files that they need.
(To build it needs a Docker daemon and a network.)"""

import re
import tomllib

from tests.conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) of the file, without comments, lines joined."""
    text = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_it_installs_by_the_projects_own_command():
    runs = [rest for name, rest in instructions() if name == "RUN"]
    assert [run for run in runs if not run.startswith(("apt-get update", "useradd"))] == [
        "make setup"
    ]
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_context_holds_what_the_installation_reads():
    rules = (ROOT / ".dockerignore").read_text().split()
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    makefile = (ROOT / "Makefile").read_text()
    read = {"Makefile", "selfsight", project["readme"], *project["license-files"]}
    (prerequisites,) = re.findall(r"^\$\(VENV\)/\.installed: \$\(BIN\)/uv (.*)$", makefile, re.M)
    assert kept >= read | set(prerequisites.split())
    assert {name for name in kept if not (ROOT / name).exists()} == set()


def test_data_runs_and_user():
    by_name = dict(instructions())  # the last of each
    assert by_name["ENTRYPOINT"] == '["selfsight"]'
    assert by_name["USER"] == "selfsight"
    assert by_name["WORKDIR"] == "/work"
    assert "/data" in by_name["VOLUME"]
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)-slim$", TEXT, re.MULTILINE)
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f"Programming Language :: Python :: {version}" in pyproject
