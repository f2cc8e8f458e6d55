"""The floors of the house: a file imports only from floors below, and never in a circle."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import selfsight

PACKAGE = Path(selfsight.__file__).parent
# From the top. A module belongs to the longest prefix that fits; prefixes of one floor do not
# import each other.
FLOORS = [
    ["__main__", "__init__"],
    ["interop.cli"],
    ["cli"],
    ["front"],
    ["interop"],
    ["grid", "suggest"],
    ["report"],
    ["pretraining", "embeddings", "export"],
    ["evaluate.protocols"],
    ["evaluate"],
    ["train", "testing"],
    ["encoders", "logging"],
    ["methods"],
    ["views", "data", "random_layers"],
    ["batch", "losses", "config", "own"],
    ["yaml_text"],
    ["files", "metrics", "compiler", "recompute", "agreement"],
    ["locks", "randomness", "distributed", "connect", "schedules", "blame"],
    ["lease", "peers"],
    ["processes", "mapped", "errors", "meeting"],
]


# What floors alone would allow: a method knows no data, and what trains knows no method.
NEVER = {"methods": ["data"], "train": ["methods"]}
CONTRACT = ["methods.method"]


def prefix_and_floor(module: str) -> tuple[str, int]:
    fits = [
        (prefix, height)
        for height, prefixes in enumerate(reversed(FLOORS))
        for prefix in prefixes
        if f"{module}.".startswith(f"{prefix}.")
    ]
    if not fits:
        raise AssertionError(f"{module} stands on no floor; add it to the plan")
    return max(fits, key=lambda fit: len(fit[0]))


def name_of(path: Path, package: Path) -> str:
    """The module of a file, without the package's name; of the package itself __init__."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(path: Path, package: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside functions; not those
    that only a type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    root, found = package.name, set()
    for node in set(ast.walk(tree)) - unseen:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith(f"{root}.")}
        elif isinstance(node, ast.ImportFrom) and (f"{node.module}.").startswith(f"{root}."):
            inside = package.joinpath(*node.module.split(".")[1:])
            for alias in node.names:
                is_module = (inside / f"{alias.name}.py").exists() or (inside / alias.name).is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return {name.removeprefix(f"{root}.") for name in found if name != root}


@functools.cache
def graph(package: Path) -> dict[str, set[str]]:
    return {name_of(p, package): imports(p, package) for p in sorted(package.rglob("*.py"))}


def wrong_imports(modules: dict[str, set[str]]) -> list[str]:
    """Imports from a floor above, or from another part of the same floor; and circles."""
    wrong = []
    for module, used_modules in modules.items():
        part, floor = prefix_and_floor(module)
        for used in used_modules:
            used_part, used_floor = prefix_and_floor(used)
            never = any(f"{used}.".startswith(f"{name}.") for name in NEVER.get(part, []))
            same_floor = used_floor == floor and used_part != part
            if used_floor > floor or same_floor or (never and used not in CONTRACT):
                wrong.append(f"{module} imports {used}")
    try:
        graphlib.TopologicalSorter(modules).prepare()
    except graphlib.CycleError as error:
        wrong.append(" imports ".join(reversed(error.args[1])))
    return wrong


def test_files_import_from_below():
    assert wrong_imports(graph(PACKAGE)) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("losses/moments.py", "from selfsight.train import engine", "losses.moments imports train"),
        ("methods/vit.py", "import selfsight.data.images", "methods.vit imports data.images"),
        ("views/make.py", "from selfsight.data import images", "views.make imports data"),
        (
            "train/engine.py",
            "from selfsight.methods import METHODS",
            "train.engine imports methods",
        ),
        ("train/engine.py", "from selfsight.errors import UserError", ""),
        ("batch.py", "def f():\n    from selfsight.config import Config", "batch imports config"),
        ("data/source.py", "from selfsight.data.images import Images", "data.images imports"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line, found):
    """In a copy of the file, which takes its place among the others."""
    modules = graph(PACKAGE)
    before = wrong_imports(modules)
    package = tmp_path / "selfsight"
    for path in PACKAGE.rglob("*.py"):  # what is imported is looked up among them
        copy = package / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    planted = package / file
    planted.write_text(
        f"{(PACKAGE / file).read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8"
    )
    modules = {**modules, name_of(planted, package): imports(planted, package)}
    new = [line for line in wrong_imports(modules) if line not in before]
    assert len(new) == bool(found)
    assert all(found in line for line in new)


def test_importing_a_method_loads_no_data_code():
    code = (
        "import sys, selfsight.methods.simclr; "
        "print([m for m in sys.modules if m.startswith(('selfsight.data', 'pyarrow'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_sizes():
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert all(count < 300 for count in lines.values()), max(lines, key=lines.get)
    assert all(n < 120 for path, n in lines.items() if path.startswith("methods/"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys, selfsight.cli; selfsight.cli.register_all(); "
        "assert not {'torch', 'pydantic', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_splits_weights_is_imported_when_weights_are_split():
    """It takes half of the time in which an evaluation starts."""
    code = (
        "import sys, selfsight.evaluate.protocols, selfsight.pretraining.job; "
        "assert not {'torch.distributed.fsdp', 'torch.distributed.tensor'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
