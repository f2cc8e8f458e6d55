"""Pages that follow from what is shipped: recipes, protocols, grids, commands and keys."""

import functools
import inspect
from collections import defaultdict
from pathlib import Path

import typer

from _site import api, fields
from _site.fields import plain
from selfsight import cli
from selfsight.cli.app import app
from selfsight.evaluate.protocols import config as protocols
from selfsight.grid import plan
from selfsight.pretraining.config import RunConfig
from selfsight.pretraining.recipes import SHIPPED, recipe_title
from selfsight.views.recipe import PRESETS, ViewGroup
from selfsight.yaml_text import read_yaml

RECIPES = """\
# Recipes

`selfsight pretrain NAME` trains by a recipe, and `selfsight show NAME` prints all its values. A
recipe with `base` changes another one.

```{{toctree}}
:maxdepth: 2

{}```
"""
CONFIGURATION = """\
# Configuration

The keys of a pretraining: in a file as YAML, on the command line as `key=value`, in Python as
keywords. What `method.*` are depends on the method: [methods](methods.md). An evaluation takes the
keys of `data`, too; `selfsight COMMAND --help` names more.

## The run

"""
VIEWS = """
## views

`views` is the name of a preset, or a list of groups, whose keys are `views.N.KEY` with N from 0.
What each step needs: [views](/views.md). Presets: {}.

"""


def all_pages() -> dict[str, str]:
    """The name of each page -> its text."""
    return {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        "reference/methods.md": api.methods(recipes_of()),
        "reference/protocols.md": protocols_and_grids(),
        "reference/python.md": api.python(),
        "reference/losses.md": api.losses_and_testing(),
        **recipes(),
    }


# What is shipped ----------------------------------------------------------------------------------


def shipped_recipes() -> list[str]:
    """Names such as "digits/simclr", without recipes of the user's own."""
    files = SHIPPED.rglob("*.yaml")
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in files)


def recipes() -> dict[str, str]:
    """A page of all recipes, and one for each folder with the text of each."""
    pages = defaultdict(str)
    for name in shipped_recipes():
        folder = name.partition("/")[0]
        page = f"reference/recipes/{folder}.md"
        pages[page] = (pages[page] or f"# {folder}\n") + _recipe(name)
    folders = "".join(f"recipes/{Path(page).stem}\n" for page in pages)
    return {"reference/recipes.md": RECIPES.format(folders), **pages}


def _recipe(name: str) -> str:
    method = method_of(name)
    about = f"Method: [{method}](/reference/methods.md#{method})"
    base = read_yaml(SHIPPED / f"{name}.yaml").get("base")
    about += f"; below it: {recipe_link(base)}." if base else "."
    return f"\n## {name}\n\n{plain(recipe_title(name))}.\n\n{about}\n\n{_source(SHIPPED, name)}"


def recipe_link(recipe: str) -> str:
    anchor = recipe.replace("/", "")  # as myst makes it of a heading
    return f"[{recipe}](/reference/recipes/{recipe.partition('/')[0]}.md#{anchor})"


@functools.cache
def method_of(recipe: str) -> str:
    """The method of a recipe, or of the recipe below it. (To compose a recipe may need weights that
    are fetched.)"""
    tree = read_yaml(SHIPPED / f"{recipe}.yaml")
    method = tree.get("method", {})
    return (method if isinstance(method, str) else method.get("name")) or method_of(tree["base"])


def recipes_of() -> dict[str, list[str]]:
    """The name of a method -> links to its recipes."""
    found = defaultdict(list)
    for name in shipped_recipes():
        found[method_of(name)].append(recipe_link(name))
    return found


def protocols_and_grids() -> str:
    """The text of both."""
    text = "# Protocols and grids\n\n## Protocols of `linear-augmented` and `finetune`\n"
    for name in protocols.protocols():
        source = _source(protocols.PROTOCOLS, name)
        text += f"\n### {name}\n\n{plain(protocols.title(name))}.\n\n{source}"
    text += "\n## Grids of `bench`\n"
    for name in plan.grids():
        text += f"\n### {name}\n\n{plain(plan.title(name))}.\n\n{_source(plan.GRIDS, name)}"
    return text


def _source(folder: Path, name: str) -> str:
    return f"```yaml\n{(folder / f'{name}.yaml').read_text(encoding='utf-8')}```\n"


# Commands and keys --------------------------------------------------------------------------------

Parameter = typer.core.TyperArgument | typer.core.TyperOption


def commands() -> str:
    """Every command with its arguments and options, as its help has them."""
    cli.register_all()
    text = "# Commands\n\n`selfsight COMMAND --help` prints the same.\n"
    for name, command in typer.main.get_command(app).commands.items():
        rows = "".join(map(_parameter, command.params))
        text += f"\n## selfsight {name}\n\n{plain(inspect.cleandoc(command.help or ''))}\n\n"
        text += f"```\n{_usage(name, command.params)}\n```\n"
        text += f"\n| | meaning | default |\n|---|---|---|\n{rows}" if rows else ""
    return text


def _usage(name: str, parameters: list[Parameter]) -> str:
    words = [f"selfsight {name}"]
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            word = _title(parameter) + ("..." if parameter.nargs == -1 else "")
            words.append(word if parameter.required else f"[{word}]")
    options = any(parameter.param_type_name == "option" for parameter in parameters)
    return " ".join(words) + (" [OPTIONS]" if options else "")


def _parameter(parameter: Parameter) -> str:
    default = parameter.default
    said = "" if default is None or default is False or callable(default) else f"`{default}`"
    meaning = plain(parameter.help or "").replace("|", "\\|")
    return f"| `{_title(parameter)}` | {meaning} | {said} |\n"


def _title(parameter: Parameter) -> str:
    if parameter.param_type_name == "argument":
        return (parameter.metavar or parameter.name).upper().rstrip(".")
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def configuration() -> str:
    """Every key of a pretraining with its meaning, but those of methods."""
    found = {key: fields.section_of(field) for key, field in RunConfig.model_fields.items()}
    sections = {key: kind for key, kind in found.items() if kind is not None}
    elsewhere = tuple(f"| `{key}" for key in ("method`", "views`", *(f"{k}." for k in sections)))
    rows = fields.table(RunConfig).splitlines(keepends=True)
    text = CONFIGURATION + "".join(row for row in rows if not row.startswith(elsewhere))
    for key, kind in sections.items():
        text += f"\n## {key}\n\n{fields.table(kind, f'{key}.')}"
    presets = ", ".join(f"`{name}`" for name in PRESETS)
    return text + VIEWS.format(presets) + fields.table(ViewGroup, "views.N.")
