"""What pages show: their links and anchors, blocks of code, and commands, which are checked without
being run."""

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import typer
import yaml
from PIL import Image

from selfsight import cli
from selfsight import config as layers
from selfsight.cli.app import app
from selfsight.cli.images import data_config
from selfsight.data.config import DataConfig
from selfsight.data.pack import write as packing
from selfsight.errors import UserError
from selfsight.evaluate.classifiers import FineTuned, LinearHeads
from selfsight.evaluate.protocols import config as evaluation
from selfsight.evaluate.protocols.config import TrainedConfig
from selfsight.grid.plan import read_grid
from selfsight.methods import METHODS
from selfsight.pretraining.config import RunConfig, compose
from selfsight.pretraining.job import pretrain
from selfsight.pretraining.recipes import recipes
from selfsight.views.recipe import ViewGroup
from tests.conftest import TINY, heads

OWN_CODE = re.compile(r"=\w+\.py:\w+$")  # a value that names code in a file of the reader's
FILE = re.compile(r"\.(py|md|json|png|yaml)$")
NOT_RUN = r"<!-- not run: .+? -->\n"  # stands above a block, with the reason
UsageError = typer.BadParameter.__base__  # click's, which typer has a copy of
CACHED = {"knn": evaluation.KnnConfig, "linear": evaluation.LinearConfig}


def anchors(text: str) -> set[str]:
    """The names of a page's headings in links, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[tuple[str, str]]:
    """(file, anchor) of each link that is no address; file is empty inside of a page."""
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield file, anchor


def blocks(text: str, *languages: str) -> list[tuple[str, bool]]:
    """(block, whether it is to be run) of fenced blocks in these languages; "" names none."""
    pattern = rf"({NOT_RUN})?^```(\w*)\n(.*?)^```$"
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return [(block, not marked) for marked, language, block in found if language in languages]


def commands(text: str) -> Iterator[list[str]]:
    """The words after `selfsight` of each command in blocks and inside of sentences. A word in
    capitals, or with dots or <...> in it, stands for something of the reader's."""
    lines = []
    for block, _ in blocks(text, "", "sh", "bash"):
        lines += re.sub(r"\\\n\s*", " ", block).splitlines()
    without = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`(selfsight [^`]+)`", without)
    lines += [re.sub(r"[\[\]]|key=value|(?<= )\.\.\.", "", line) for line in inline]
    for line in lines:
        if re.match(r"\s*(\.venv/bin/|torchrun .*-m |docker run .*)?selfsight ", line):
            words = shlex.split(line, comments=True)
            last = max(n for n, word in enumerate(words) if Path(word).name == "selfsight")
            words = words[last + 1 :]
            yield words[: words.index(">")] if ">" in words else words


def manifest_commands(text: str) -> Iterator[list[str]]:
    """The words after `selfsight` of each container in objects of Kubernetes.

    Raises: KeyError for an object without a kind, a version or a name.
    """
    for thing in yaml.safe_load_all(text):
        _ = thing["kind"], thing["apiVersion"], thing["metadata"]["name"]
        template = thing["spec"].get("template", {"spec": {}})
        for container in template["spec"].get("containers", []):
            words = container["command"] + container["args"]
            yield words[words.index("selfsight") + 1 :]


def check_command(words: list[str]) -> None:
    """Parse a command and validate its keys, without running it.

    Raises: UserError for what the command itself would refuse.
    """
    cli.register_all()
    group = typer.main.get_command(app)
    name, *arguments = words
    if name.startswith("-"):
        return
    command = group.commands.get(name)
    if command is None:
        raise UserError(f"selfsight {name}: no such command")
    if not arguments and any(parameter.required for parameter in command.params):
        return  # a command that a sentence only names
    try:
        given = command.make_context(name, list(arguments)).params
    except UsageError as error:
        raise UserError(error.format_message()) from None
    _check_keys(name, given)


def _check_keys(name: str, given: dict) -> None:
    keys = given.get("overrides") or given.get("keys") or []
    keys = [key for key in keys if not OWN_CODE.search(key)]
    target = str(given.get("what") or given.get("where") or given.get("grid") or "")
    if given.get("opts") or re.search(r"\.(ini|yaml)$|^FILE$", target):
        return  # keys of another system's file, or of one of the reader's
    if name in ("pretrain", "profile", "show", "slurm", "views"):
        compose(target if _is_name(target) else None, keys)
    elif name in CACHED:
        evaluation.compose_cached(CACHED[name], {}, keys)
    elif name in ("linear-augmented", "finetune") and not given["classifier"]:
        protocol = given["protocol"] if _is_name(given["protocol"]) else name
        evaluation.compose_trained(protocol, name, {}, 224, keys)
    elif name == "bench" and _is_name(target):
        compose(None, read_grid(target, keys).overrides)
    elif name in ("pack", "check"):
        data_config(given["source"])


def _is_name(word: str) -> bool:
    """Whether a word is meant as it stands, as the name of something that is shipped."""
    return not word.isupper() and "<" not in word


def recipe_names(text: str) -> set[str]:
    """What a page writes as the name of a shipped recipe: `digits/simclr`."""
    folders = "|".join(sorted({name.partition("/")[0] for name in recipes()}))
    return set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w-]+(?![\w/<-]|\.\w)", text))


@functools.cache
def known_keys() -> set[str]:
    """Every key of pretraining and evaluation, of all methods, and every section of them."""
    tables = [("", kind) for kind in (RunConfig, TrainedConfig, *CACHED.values())]
    methods = (*METHODS.values(), LinearHeads, FineTuned)
    tables += [("method.", method.Config) for method in methods] + [("views.N.", ViewGroup)]
    known = {prefix + key for prefix, kind in tables for key, _ in layers._fields(kind)}
    return known | {key.rpartition(".")[0] for key in known}


def unknown_keys(text: str) -> set[str]:
    """Dotted keys in the sentences and tables of a page that no configuration has."""
    sections = "|".join(sorted({key.partition(".")[0] for key in known_keys() if "." in key}))
    pattern = rf"(?<![\w./-])(?:{sections})\.[\w.]*\w(?![\w(/*])"
    without = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    named = {key for code in re.findall(r"`([^`]+)`", without) for key in re.findall(pattern, code)}
    named = {re.sub(r"^views\.\d+", "views.N", key) for key in named if not FILE.search(key)}
    free = ("backbone.options.", "optimizer.options.")
    named = {key for key in named if not key.rpartition(".")[2].isupper()}  # stands for any
    return {key for key in named - known_keys() if not key.startswith(free)}


# Files that blocks name as the reader's own -------------------------------------------------------


def _pack(path: Path) -> None:
    np.savez("a.npz", images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9) % 2)
    config = packing.PackConfig(raw=True, size=8)
    packing.pack(DataConfig(path="a.npz"), config, path.parent, lambda *_: None)


def _run(path: Path) -> None:
    keys = [*TINY, *heads("simclr"), "max_steps=2"]
    pretrain(compose("digits/simclr", keys, str(path)).config, quiet=True)


def _photo(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((24, 24, 3), 90, np.uint8)).save(path)


def _features(path: Path) -> None:
    from selfsight.embeddings.embed import embed

    if not Path("runs/digits").exists():
        _run(Path("runs/digits"))
    embed("runs/digits", path, quiet=True)


FILES: dict[str, Callable[[Path], None]] = {
    "packed/train": _pack,
    "runs/digits": _run,
    "runs/photos": _run,
    "photos/0.png": _photo,
    "photos/1.png": _photo,
    "photos/lionfish.jpg": _photo,
    "features.parquet": _features,
    "features.npz": _features,
}
