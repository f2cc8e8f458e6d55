"""A file imports only from floors below its own, and the help needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import selfsight

PACKAGE = Path(selfsight.__file__).parent
FLOORS = [  # from the top; a module belongs to the first prefix that fits
    ["__main__", "__init__"],
    ["cli"],
    ["printing"],
    ["grid", "compare", "profiling"],
    ["measure"],
    ["run", "check"],
    ["run_folder", "build"],
    ["run_config"],
    ["dialects"],
    ["evaluate"],
    ["train"],
    ["methods"],
    ["views.sheet"],
    ["data.loader"],
    ["views"],
    ["data"],
    ["backbones"],
    ["config"],
    [
        "losses",
        "augment",
        "jitter",
        "randaugment",
        "jitter",
        "randomness",
        "schedules",
        "metrics",
        "distributed",
        "errors",
        "files",
    ],
]


def floor(module: str) -> int:
    for height, prefixes in enumerate(reversed(FLOORS)):
        for prefix in prefixes:
            if module == prefix or module.startswith(prefix + "."):
                # of several prefixes that fit, the longest counts
                longer = [p for row in FLOORS for p in row if len(p) > len(prefix)]
                if not any(module == p or module.startswith(p + ".") for p in longer):
                    return height
    raise AssertionError(f"{module} stands on no floor; add it to the plan")


def imports(path: Path) -> list[str]:
    """The modules of the package that a file imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfsight"):
            for alias in node.names:
                deeper = PACKAGE / (
                    node.module.removeprefix("selfsight").replace(".", "/")[1:] or "."
                )
                inside = (deeper / f"{alias.name}.py").exists() or (deeper / alias.name).is_dir()
                found.append(f"{node.module}.{alias.name}" if inside else node.module)
    return [name.removeprefix("selfsight").lstrip(".") for name in found if name != "selfsight"]


def test_files_import_from_below():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        same = module.split(".")[0]
        for used in imports(path):
            if floor(used) > floor(module) or (
                floor(used) == floor(module) and used.split(".")[0] != same and floor(used) > 0
            ):
                wrong.append(f"{module} imports {used}")
    assert not wrong, wrong


def test_floor_test_can_fail():
    assert floor("losses") < floor("methods.simclr") < floor("train.engine") < floor("run")
    assert floor("views.make") < floor("data.loader") < floor("methods")


def test_sizes():
    lines = {p.name: len(p.read_text().splitlines()) for p in PACKAGE.glob("methods/*.py")}
    assert max(lines.values()) < 120, lines


def test_help_does_not_import_torch():
    code = "import sys, selfsight, selfsight.cli; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
