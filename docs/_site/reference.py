"""Pages that follow from the package: recipes, protocols, grids, commands, keys, and the API."""

import inspect
import re
from collections import defaultdict
from pathlib import Path

import typer

import selfsight
from _site import fields
from selfsight import cli, losses, testing
from selfsight.cli.app import app
from selfsight.config import read_yaml
from selfsight.evaluate.protocols import config as protocols
from selfsight.grid import plan
from selfsight.methods import METHODS, Method
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.recipes import SHIPPED, recipe_title
from selfsight.views.recipe import PRESETS, ViewGroup

METHOD_PAGE = "[{0}](/reference/methods.md#{0})"
VIEWS = """\
The keys of a group of views, `views.N.KEY`; what each step needs is told in [views](/views.md). Presets: {}.
"""


def all_pages() -> dict[str, str]:
    """The name of each page -> its text."""
    return {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        "reference/methods.md": methods(),
        "reference/protocols.md": shipped(
            "Protocols and grids",
            {
                "Protocols of `linear-augmented` and `finetune`": (
                    {name: protocols.title(name) for name in protocols.protocols()},
                    protocols.PROTOCOLS,
                ),
                "Grids of `bench`": ({name: plan.title(name) for name in plan.grids()}, plan.GRIDS),
            },
        ),
        "reference/python.md": python(),
        "reference/losses.md": losses_and_testing(),
        **recipes(),
    }


# What is shipped ----------------------------------------------------------------------------------


def recipes() -> dict[str, str]:
    """A page of all recipes, and one for each folder with the text of each."""
    by_folder = defaultdict(list)
    for path in sorted(SHIPPED.rglob("*.yaml")):
        name = path.relative_to(SHIPPED).with_suffix("").as_posix()
        by_folder[name.partition("/")[0]].append(name)
    lists = "".join(f"recipes/{folder}\n" for folder in by_folder)
    first = (
        "# Recipes\n\n`selfsight pretrain NAME` trains by a recipe, `selfsight show NAME` prints all its "
        f"values.\n\n```{{toctree}}\n:maxdepth: 2\n\n{lists}```\n"
    )
    pages = {"reference/recipes.md": first}
    for folder, names in by_folder.items():
        shown = "\n".join(_recipe(name) for name in names)
        pages[f"reference/recipes/{folder}.md"] = f"# {folder}\n\n{shown}"
    return pages


def _recipe(name: str) -> str:
    about = f"{recipe_title(name)}.\n\nMethod: {METHOD_PAGE.format(method_of(name))}"
    base = read_yaml(SHIPPED / f"{name}.yaml").get("base")
    if base:
        about += f"; below it: {_link(base)}"
    return f"## {name}\n\n{about}.\n\n{_source(SHIPPED, name)}"


def _link(recipe: str) -> str:
    anchor = recipe.replace("/", "")  # as myst makes it of a heading
    return f"[{recipe}](/reference/recipes/{recipe.partition('/')[0]}.md#{anchor})"


def method_of(recipe: str) -> str:
    """The method of a recipe, or of the recipe below it."""
    tree = read_yaml(SHIPPED / f"{recipe}.yaml")
    method = tree.get("method", {})
    name = method if isinstance(method, str) else method.get("name")
    return name or method_of(tree["base"])


def _source(folder: Path, name: str) -> str:
    return f"```yaml\n{(folder / f'{name}.yaml').read_text(encoding='utf-8')}```\n"


def shipped(title: str, parts: dict[str, tuple[dict[str, str], Path]]) -> str:
    """A page with the text of named YAML files."""
    text = f"# {title}\n"
    for heading, (titles, folder) in parts.items():
        text += f"\n## {heading}\n\n"
        for name, about in titles.items():
            text += f"### {name}\n\n{about}.\n\n{_source(folder, name)}\n"
    return text


# Commands and keys --------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options, as its help has them."""
    cli.register_all()
    group = typer.main.get_command(app)
    text = "# Commands\n\n`selfsight COMMAND --help` prints the same.\n"
    for name, command in group.commands.items():
        with typer.Context(command, info_name=f"selfsight {name}") as context:
            usage = " ".join(command.collect_usage_pieces(context))
            rows = [_parameter(parameter) for parameter in command.params]
        text += f"\n## selfsight {name}\n\n{_plain(inspect.cleandoc(command.help or ''))}\n\n"
        text += f"```\nselfsight {name} {usage}\n```\n"
        if rows:
            text += "\n| | meaning | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    return text


def _parameter(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = parameter.metavar or parameter.name.upper()
    default = parameter.default
    said = "" if default is None or default is False or callable(default) else f"`{default}`"
    return f"| `{names}` | {_plain(parameter.help or '').replace('|', chr(92) + '|')} | {said} |"


def _plain(text: str) -> str:
    """Text in which stars and brackets are no markup."""
    return "".join(
        part if part.startswith("`") else re.sub(r"[*_<\[\]]", r"\\\g<0>", part)
        for part in re.split(r"(`[^`]*`)", text)
    )


def configuration() -> str:
    """Every key of a pretraining with its meaning."""
    text = (
        "# Configuration\n\nThe keys of a pretraining: in a file as YAML, on the command line as "
        "`key=value`, in Python as keywords. An evaluation has those of `data`, and prints its own with "
        "`--help`. `method.*` depends on the method: [methods](methods.md).\n\n## The run\n\n"
    )
    sections = {k: kind for k, f in RunConfig.model_fields.items() if (kind := fields.section_of(f))}
    whole = fields.table(RunConfig).splitlines()
    own = [row for row in whole if not row.startswith(tuple(f"| `{key}." for key in sections))]
    text += "\n".join(own) + "\n"
    for key, kind in sections.items():
        text += f"\n## {key}\n\n{fields.table(kind, f'{key}.')}"
    presets = ", ".join(f"`{name}`" for name in PRESETS)
    return text + f"\n## views\n\n{VIEWS.format(presets)}\n{fields.table(ViewGroup, 'views.N.')}"


# The API ------------------------------------------------------------------------------------------


def methods() -> str:
    """Every method: its docstring, its keys, its recipes."""
    text = (
        "# The classes of the methods\n\nWhat each exchanges between processes, and whether each learns: "
        "[the methods](/methods.md).\n\n"
    )
    text += _rst("autoclass:: selfsight.methods.Method\n   :members:\n   :special-members: __call__")
    text += _rst("autoclass:: selfsight.methods.MethodConfig")
    text += _rst("autoclass:: selfsight.methods.Output")
    used = defaultdict(list)
    for path in sorted(SHIPPED.rglob("*.yaml")):
        name = path.relative_to(SHIPPED).with_suffix("").as_posix()
        used[method_of(name)].append(name)
    return text + "".join(_method(name, method, used[name]) for name, method in METHODS.items())


def _method(name: str, method: type[Method], used: list[str]) -> str:
    links = ", ".join(map(_link, used))
    about = _rst(f"autoclass:: selfsight.methods.{method.__name__}")
    needs = f"Needs: {', '.join(method.needs)}. " if method.needs else ""
    text = f"\n## {name}\n\n{about}\n{needs}Views: preset `{method.default_views}`."
    text += f" Recipes: {links}.\n" if links else "\n"
    rows = fields.table(method.Config, "method.")
    kept = [row for row in rows.splitlines() if not row.startswith("| `method.name`")]
    return text + "\n" + "\n".join(kept) + "\n" if len(kept) > 2 else text


def python() -> str:
    """The names of the package itself."""
    text = "# Python\n\nNames of `selfsight`; how they work together: [from Python](/python.md).\n"
    for name in selfsight.__all__:
        if not inspect.ismodule(value := getattr(selfsight, name)) and name not in NOT_HERE:
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            members = "\n   :members:" if kind == "autoclass" and name not in SHORT else ""
            text += f"\n## {name}\n\n" + _rst(f"{kind}:: selfsight.{name}{members}")
    text += "\n## What these take and return\n\n"
    for name in TAKEN_AND_RETURNED:
        text += _rst(f"autoclass:: selfsight.{name}\n   :members:")
    for module in ("heads", "distributed"):
        text += f"\n## selfsight.{module}\n\n" + _rst(
            f"automodule:: {getattr(selfsight, module).__name__}\n   :members:"
        )
    return text


NOT_HERE = ("Method", "MethodConfig", "Output")  # with the methods
TAKEN_AND_RETURNED = (
    "encoders.encoder.Encoder",
    "evaluate.protocols.results.Result",
    "pretraining.config.Composed",
    "batch.SampleKey",
    "train.hooks.Hook",
    "train.hooks.RunState",
)
SHORT = ("RunConfig", "UserError")  # their keys are on another page, or there are none


def losses_and_testing() -> str:
    """Functions and classes of two modules."""
    text = f"# Losses and testing\n\n## selfsight.losses\n\n{_rst('automodule:: selfsight.losses')}\n"
    text += "".join(_rst(f"autofunction:: selfsight.losses.{name}") for name in losses.__all__)
    text += f"\n## selfsight.testing\n\n{_rst('automodule:: selfsight.testing')}\n"
    for name in testing.__all__:
        kind = "autoclass" if inspect.isclass(getattr(testing, name)) else "autofunction"
        text += _rst(f"{kind}:: selfsight.testing.{name}")
    return text


def _rst(directive: str) -> str:
    return f"```{{eval-rst}}\n.. {directive}\n```\n"
