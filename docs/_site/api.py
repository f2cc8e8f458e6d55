"""Pages of the Python API: which names they show; their text is that of the docstrings."""

import inspect
from types import ModuleType

import selfsight
from _site import fields
from selfsight import losses, testing
from selfsight.config import Config
from selfsight.methods import METHODS, Method, MethodConfig

METHODS_PAGE = """\
# The classes of the methods

What each exchanges between processes, and whether each learns: [the methods](/methods.md).

"""
PYTHON = """\
# Functions and classes

Names of `selfsight`; how they work together: [from Python](/python.md).
"""
WITH_A_PAGE = ("losses", "methods", "testing")
WITH_THE_METHODS = ("Method", "MethodConfig", "Output")
TAKEN_AND_RETURNED = (  # types in the signatures of these names, which users meet
    "encoders.encoder.Encoder",
    "evaluate.protocols.results.Result",
    "pretraining.config.Composed",
    "batch.SampleKey",
    "train.hooks.Hook",
    "train.hooks.RunState",
)


def methods(recipes: dict[str, list[str]]) -> str:
    """Every method: its docstring, its keys, its recipes.

    Args:
        recipes: the name of a method -> links.
    """
    members = ":members:\n   :special-members: __call__"
    text = METHODS_PAGE + _rst(f"autoclass:: selfsight.methods.Method\n   {members}")
    text += _shown("selfsight.methods", "MethodConfig", MethodConfig)
    text += _rst("autoclass:: selfsight.methods.Output")
    return text + "".join(_method(name, METHODS[name], recipes.get(name, [])) for name in METHODS)


def _method(name: str, method: type[Method], recipes: list[str]) -> str:
    text = f"\n## {name}\n\n" + _rst(f"autoclass:: selfsight.methods.{method.__name__}") + "\n"
    text += f"Needs: {', '.join(method.needs)}. " if method.needs else ""
    text += f"Views: preset `{method.default_views}`."
    text += f" Recipes: {', '.join(recipes)}.\n" if recipes else "\n"
    rows = fields.table(method.Config, "method.").splitlines(keepends=True)
    kept = [row for row in rows if not row.startswith("| `method.name`")]
    return text + "\n" + "".join(kept) if len(kept) > 2 else text


def python() -> str:
    """The names of the package itself."""
    text = PYTHON
    for name in selfsight.__all__:
        value = getattr(selfsight, name)
        if not inspect.ismodule(value) and name not in WITH_THE_METHODS:
            text += f"\n## {name}\n\n{_shown('selfsight', name, value)}"
    text += "\n## What these take and return\n\n"
    for name in TAKEN_AND_RETURNED:
        text += _rst(f"autoclass:: selfsight.{name}\n   :members:")
    for name in selfsight.__all__:
        value = getattr(selfsight, name)
        if inspect.ismodule(value) and name not in WITH_A_PAGE:
            module = _rst(f"automodule:: {value.__name__}\n   :members:")
            text += f"\n## selfsight.{name}\n\n{module}"
    return text


def losses_and_testing() -> str:
    """The public names of two modules."""
    return f"# Losses and testing\n\n{_module(losses)}\n{_module(testing)}"


def _module(module: ModuleType) -> str:
    name = module.__name__
    names = "".join(_shown(name, public, getattr(module, public)) for public in module.__all__)
    return f"## {name}\n\n" + _rst(f"automodule:: {name}") + names


def _shown(module: str, name: str, value: object) -> str:
    if not inspect.isclass(value):
        return _rst(f"autofunction:: {module}.{name}")
    if issubclass(value, Config):  # its keys are in a table, and its __init__ is pydantic's
        return _rst(f"autoclass:: {module}.{name}\n   :class-doc-from: class")
    members = "" if issubclass(value, Exception) else "\n   :members:"
    return _rst(f"autoclass:: {module}.{name}{members}")


def _rst(directive: str) -> str:
    return f"```{{eval-rst}}\n.. {directive}\n```\n"
