"""Training without a compiler that works."""

import pytest
import torch

from selfsight import compiler
from selfsight.compiler import can_compile
from selfsight.train.engine import place
from tests.conftest import TinyEncoder


@pytest.fixture(autouse=True)
def asked_anew():
    can_compile.cache_clear()
    yield
    can_compile.cache_clear()


class Broken(Exception):
    pass


def test_without_a_compiler_nothing_is_compiled_and_a_line_says_so(monkeypatch, capsys):
    def no_compiler(function):
        raise Broken("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for the stack")

    monkeypatch.setattr(torch, "compile", no_compiler)
    encoder = TinyEncoder()
    monkeypatch.setattr(torch.nn.Module, "compile", None)  # raises if it is called
    for _ in range(2):
        assert place(encoder, torch.device("cpu"), compile=True) is encoder
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compile: torch.compile does not work here (Broken: No working C++")
    assert line.endswith("Install a C++ compiler, or set compile=false")


def test_nobody_asks_where_nothing_is_to_be_compiled(monkeypatch):
    monkeypatch.setattr(compiler.torch, "compile", None)
    for setting in (False, "auto"):  # auto: on GPUs
        place(TinyEncoder(), torch.device("cpu"), compile=setting)


def test_what_compiles_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    encoder = TinyEncoder()
    place(encoder, torch.device("cpu"), compile=True)
    assert compiled == list(encoder.children())
