"""The benchmarks, which tests do not run, find the names of the package that they use."""

import importlib
import pkgutil

import pytest

import benchmarks


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
)
def test_a_benchmark_imports_what_exists(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__
