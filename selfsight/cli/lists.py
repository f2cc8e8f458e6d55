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
    """List the shipped recipes."""
    from selfsight.pretraining import config as run_config

    list_names(run_config.recipes(), run_config.recipe_title)


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
    from selfsight.methods import METHODS
    from selfsight.pretraining import config as run_config
    from selfsight.report.console import print_columns

    shipped = [name.partition("/") for name in run_config.recipes()]
    rows = []
    for name, method in METHODS.items():
        paper = method.paper()
        where = ", ".join(folder for folder, _, recipe in shipped if recipe == name)
        needs = ", ".join(method.needs)
        rows.append([name, str(paper.year), paper.arxiv, paper.title, needs, where])
    print_columns(("method", "year", "arXiv", "paper", "needs", "recipes"), rows, 3)


@app.command(rich_help_panel=LISTS)
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    import json

    from selfsight.pretraining.config import json_schema

    print(json.dumps(json_schema(), indent=2))
