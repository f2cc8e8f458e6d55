"""Commands that list recipes, protocols, grids, methods and keys."""

from selfsight.cli.app import COMPARE, LISTS, Overrides, What, app, list_names
from selfsight.cli.files import composed


@app.command(rich_help_panel=COMPARE)
def show(what: What, overrides: Overrides = None) -> None:
    """Print every value of a configuration and who set it."""
    from selfsight.report.console import print_columns

    with composed(what, overrides) as found:
        rows = found.rows()
    dim = [origin.startswith("default") for _, _, origin in rows]
    print_columns(("key", "value", "set by"), [[*map(str, row)] for row in rows], 1, dim)


@app.command(rich_help_panel=LISTS)
def recipes() -> None:
    """List the recipes, shipped ones and your own."""
    from selfsight.pretraining import recipes as found

    list_names(found.recipes(), found.recipe_title)


@app.command(rich_help_panel=LISTS)
def protocols() -> None:
    """List the shipped protocols of `linear-augmented` and `finetune`."""
    from selfsight.evaluate.protocols import config

    list_names(config.protocols(), config.title)


@app.command(rich_help_panel=LISTS)
def grids() -> None:
    """List the shipped grids."""
    from selfsight.grid import plan

    list_names(plan.grids(), plan.title)


@app.command(rich_help_panel=LISTS)
def methods() -> None:
    """List the methods: paper, year, what each needs, its recipes."""
    from selfsight import own
    from selfsight.methods import METHODS
    from selfsight.pretraining import recipes as found
    from selfsight.pretraining.own_parts import find_method
    from selfsight.report.console import print_columns

    known = [name.rpartition("/") for name in found.recipes()]
    rows = []
    for name in (*METHODS, *own.registered("method")):
        method = find_method(name)
        paper = method.paper()
        about = ["", "", method.__name__] if paper is None else [str(paper.year), paper.arxiv]
        about += [] if paper is None else [paper.title]
        where = ", ".join(folder for folder, _, recipe in known if recipe == name)
        rows.append([name, *about, ", ".join(method.needs), where])
    print_columns(("method", "year", "arXiv", "paper", "needs", "recipes"), rows, 3)


@app.command(rich_help_panel=LISTS)
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    import json

    from selfsight.pretraining.config import json_schema

    print(json.dumps(json_schema(), indent=2))
