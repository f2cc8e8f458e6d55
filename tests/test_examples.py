"""The examples in docstrings: every public name has one, and each gives what it says."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch

import selfsight
from selfsight.methods import METHODS

PUBLIC = {name: getattr(selfsight, name) for name in selfsight._HOME}
MODULES = [
    "batch",
    "blame",
    "embeddings.cluster",
    "embeddings.duplicates",
    "embeddings.index",
    "embeddings.search",
    "encoders.dense",
    "errors",
    "evaluate.interval",
    "losses",
    "methods.heads",
    "methods.paper",
    "own",
    "schedules",
    "testing",
]
FOUND = {}
for name, value in PUBLIC.items():
    FOUND[name] = value
for name, method in METHODS.items():
    FOUND[f"methods.{name}"] = method
for module in map(importlib.import_module, (f"selfsight.{name}" for name in MODULES)):
    for name in getattr(module, "__all__", vars(module)):
        value = getattr(module, name)
        code = inspect.isclass(value) or inspect.isfunction(value)
        if code and value.__module__.startswith("selfsight") and ">>>" in (value.__doc__ or ""):
            FOUND[f"{module.__name__.removeprefix('selfsight.')}.{name}"] = value
NEEDED = [*PUBLIC, *(f"methods.{name}" for name in METHODS)]
NEEDED += [f"losses.{name}" for name in selfsight.losses.__all__]


@pytest.mark.parametrize("name", NEEDED)
def test_a_public_name_has_an_example(name):
    assert name in FOUND
    assert ">>>" in (FOUND[name].__doc__ or "")


@pytest.mark.parametrize("name", [n for n in FOUND if ">>>" in (FOUND[n].__doc__ or "")])
def test_an_example_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = FOUND[name]
    globs = {"torch": torch, "Path": Path, **vars(inspect.getmodule(value)), "selfsight": selfsight}
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    report = []
    for test in finder.find(value, name, globs=globs):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 0
