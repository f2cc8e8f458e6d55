"""What the documentation shows is taken from it and run."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from selfsight import cli
from selfsight.cli.app import app
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import protocols
from selfsight.grid.plan import read_grid
from selfsight.pretraining.config import compose
from selfsight.pretraining.recipes import recipes
from tests import documented
from tests.conftest import ROOT
from tests.losses.test_losses import compare as equal_losses

PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A folder with the files of the page, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "align_uniform", raising=False)
    (tmp_path / "recipes").mkdir()
    paths = re.findall(r"^`([\w/]+\.\w+)`$", PAGE, re.MULTILINE)
    for path, text in zip(paths, (blocks("python")[0], *blocks("yaml")), strict=True):
        (tmp_path / path).write_text(text)
    return tmp_path


def test_the_pages_method_is_that_of_the_example(page):
    example = ROOT / "examples/plugin/selfsight_example/method.py"
    assert (page / "align_uniform.py").read_text() == example.read_text()


def test_the_pages_method_keeps_the_contract_and_trains(page, command):
    exec(blocks("python")[1], {})
    first, *_ = re.findall(r"^(selfsight pretrain .*)$", PAGE, re.MULTILINE)
    done = command(*first.split()[1:], "max_steps=3", cwd=page)
    assert done.returncode == 0, done.stderr
    assert "align_uniform.py" in (page / "runs/align/config.yaml").read_text()
    assert "recipes/align.yaml" in command("recipes", cwd=page).stdout
    done = command("pretrain", "align", "max_steps=3", cwd=page)
    assert "add method.name=align_uniform.py:AlignUniform to the command" in done.stderr
    named = "method.name=align_uniform.py:AlignUniform"
    done = command("pretrain", "align", named, "max_steps=3", "--run", "runs/b", cwd=page)
    assert done.returncode == 0, done.stderr
    names: dict = {}
    exec(blocks("python")[3], names)
    assert names["run"].metrics()[-1]["step"] == 3


def test_the_pages_loss_equals_the_pages_oracle(page):
    file, _, oracle, _ = blocks("python")
    names: dict = {"__name__": "page"}
    exec(file, names)
    exec(oracle, names)
    torch.manual_seed(0)
    z1, z2 = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    unit = [F.normalize(z, dim=1).detach().requires_grad_() for z in (z1, z2)]
    naive = names["naive_align_uniform"]
    equal_losses(
        lambda a, b: names["align_uniform"](a, b, 0.7),
        lambda a, b: naive(F.normalize(a, dim=1), F.normalize(b, dim=1), 0.7),
        *unit,
    )


# All pages ----------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
RUN_ABOVE = "adding-a-method.md"  # its blocks belong together
NOT_RUN = {  # of pages where no comment may stand above a block
    "import fiftyone": "needs a library that the tests do not have",
    "class SimCLR(Method):": "a part of the package's file, which a test below compares",
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links_lead_to_files_and_headings(page):
    for file, anchor in documented.links(page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), file
        if anchor:
            assert anchor in documented.anchors(target.read_text(encoding="utf-8")), (file, anchor)


@every_page
def test_code_compiles_and_runs(page, tmp_path, monkeypatch):
    """Blocks of a page run one after the other, as a reader would run them, with the files that
    they name. A comment `<!-- not run: REASON -->` above a block leaves it unrun."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for block, run in documented.blocks(page.read_text(encoding="utf-8"), "python"):
        code = compile(block, page.name, "exec")
        reason = next((why for start, why in NOT_RUN.items() if block.startswith(start)), None)
        if page.name == RUN_ABOVE or reason or not run:
            continue
        for name, make in documented.FILES.items():
            if name in block and not Path(name).exists():
                make(Path(name))
        exec(code, names)


@every_page
def test_commands_parse_and_their_keys_are_valid(page, tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)
    for words in documented.commands(page.read_text(encoding="utf-8")):
        try:
            documented.check_command(words)
        except UserError as error:
            pytest.fail(f"{page.name}: selfsight {' '.join(words)}: {error}")


@every_page
def test_recipes_protocols_and_keys_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert documented.recipe_names(text) - set(recipes()) == set()
    named = set(re.findall(r"--protocol ([a-z][a-z-]+)(?!\.)\b", text))
    assert named - set(protocols()) == set()
    assert documented.unknown_keys(text) == set()


@every_page
def test_configurations_are_valid(page, tmp_path, no_network):
    for number, (block, _) in enumerate(
        documented.blocks(page.read_text(encoding="utf-8"), "yaml")
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        if "apiVersion:" in block:
            for words in documented.manifest_commands(block):
                documented.check_command(words)
        elif "seeds:" in block:
            assert read_grid(str(file)).protocols
        elif ".py:" not in block:  # code of the reader's own
            assert compose(str(file)).config


@pytest.mark.parametrize(
    "broken",
    [
        "selfsight pretrian digits/simclr",
        "selfsight pretrain digits/simcrl",
        "selfsight pretrain digits/simclr method.temprature=1",
        "selfsight pretrain digits/simclr epochs=0",
        "selfsight pretrain digits/simclr --runs x",
        "selfsight knn RUN fraction=0.1",
        "selfsight finetune RUN --protocol finetune-mea",
        "selfsight finetune RUN epoch=20",
        "selfsight bench digit",
        "selfsight bench digits epoch=3",
        "selfsight pack photos --row -o packed",
        "selfsight pack photos",
        "selfsight check tiles data.chanels=12",
        "docker run --rm -v x:/data selfsight knn RUN --ran x",
        "torchrun --nproc-per-node 2 -m selfsight pretrain digits/byl run=runs/two",
    ],
)
def test_a_broken_command_is_found(broken):
    for text in (f"```\n{broken}\n```\n", f"```sh\n{broken} \\\n  # why\n```\n"):
        (words,) = documented.commands(text)
        with pytest.raises(UserError):
            documented.check_command(words)


def test_a_broken_command_in_a_manifest_is_found():
    (block,) = (
        text
        for text, _ in documented.blocks((ROOT / "docs/clusters.md").read_text("utf-8"), "yaml")
    )
    (words,) = documented.manifest_commands(block)
    assert words[:2] == ["pretrain", "imagenet/simclr"]
    (words,) = documented.manifest_commands(block.replace("run=/runs", "rum=/runs"))
    with pytest.raises(UserError):
        documented.check_command(words)
    with pytest.raises(KeyError):
        list(documented.manifest_commands(block.replace("kind:", "kinds:")))


def test_broken_links_names_and_blocks_are_found():
    assert list(documented.links("[a](b.md#c) [d](https://e) [f](#g)")) == [
        ("b.md", "c"),
        ("", "g"),
    ]
    assert documented.anchors("# A `b`: c-d\n```\n# no\n```\n") == {"a-b-c-d"}
    text = "`digits/simcrl`, `digits/<method>`, runs/digits/x, digits/byol.\n"
    assert documented.recipe_names(text) == {"digits/simcrl", "digits/byol"}
    text = "`data.limit=3`, `data.limits=3`, `method.temprature`, `views.0.sise`, `data.json`\n"
    assert documented.unknown_keys(text) == {"data.limits", "method.temprature", "views.N.sise"}
    text = "<!-- not run: a reason -->\n```python\nx\n```\n\n```python\ny\n```\n"
    assert documented.blocks(text, "python") == [("x\n", False), ("y\n", True)]


@every_page
def test_the_files_that_a_page_names_exist(page):
    """Of the package, the tests, the benchmarks and the examples."""
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:selfsight|tests|benchmarks|examples)/[\w./-]*)`", text))
    named |= {m.replace(".", "/") + ".py" for m in re.findall(r"-m (benchmarks\.\w+)", text)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_readme_lists_every_command():
    cli.register_all()
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    listed = set(re.findall(r"^\|.*?`selfsight ([\w-]+)", README, re.MULTILINE))
    listed |= set(re.findall(r"`selfsight ([\w-]+)`", README))
    assert listed == {name.replace("_", "-") for name in known}


def test_the_readmes_configuration_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    config = compose(str(tmp_path / "mine.yaml")).config
    assert (config.epochs, config.method.temperature) == (100, 0.2)


def test_the_readmes_method_is_the_packages():
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (forward,) = (block for block in found if "def forward" in block)
    source = (ROOT / "selfsight/methods/simclr.py").read_text()
    assert forward[forward.index("    def forward") :].rstrip() in source
