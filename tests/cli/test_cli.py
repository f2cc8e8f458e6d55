"""Commands as a user types them, in real processes."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from selfsight import __version__, cli
from selfsight.cli.app import app
from selfsight.logging.log import Progress
from selfsight.methods import METHODS
from tests.conftest import ROOT, TINY, heads, in_process, selfsight


def test_methods_lists_papers_needs_and_recipes(monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, "methods")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line and line[0] != " "}
    assert rows.keys() == {"method", *METHODS}
    assert "2020" in rows["byol"]
    assert "2006.07733" in rows["byol"]
    assert "teacher" in rows["byol"]
    assert "digits" in out


def test_the_rule_of_the_learning_rate_is_said(tmp_path):
    keys = [*TINY, *heads("simclr"), "max_steps=1", "batch_size=128"]
    rate = "optimizer={lr: 0.4, lr_scaling: sqrt}"
    done = selfsight("pretrain", "digits/simclr", *keys, rate, "--run", "r", cwd=tmp_path)
    assert "peak lr 0.2828 (0.4 per 256 images, sqrt)" in done.stderr


def test_from_pretraining_to_the_table(tmp_path):
    keys = [*TINY, *heads("simclr"), "epochs=1", "batch_size=128"]
    done = selfsight("pretrain", "digits/simclr", *keys, "--run", "r", cwd=tmp_path)
    assert done.stdout == "Done: r/encoder.safetensors. Measure it with: selfsight knn r\n"
    plain = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert re.match(r"step 11/11  epoch 1/1  loss \d.*images/s  0 s left", plain[-1])
    table = selfsight("knn", "r", cwd=tmp_path).stdout
    assert "kNN k=200" in table
    assert "360 test images" in table
    table = selfsight("linear", "r", cwd=tmp_path).stdout
    rows = {line.split()[1]: line for line in table.splitlines() if line.startswith("│")}
    assert {"encoder", "untrained", "pixels"} <= rows.keys()
    numbers = [float(n) for n in re.findall(r"\d+\.\d", rows["pixels"])]
    assert len(numbers) == 7  # five accuracies, two with a deviation
    assert "-" not in rows["pixels"]
    records = json.loads((tmp_path / "r" / "results.json").read_text())
    assert len(records) == 6
    again = selfsight("pretrain", "digits/simclr", *keys, "--run", "r", cwd=tmp_path)
    assert again.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "digits/simcrl"], "Did you mean 'digits/simclr'"),
        (["pretrain", "digits/simclr", "method.temprature=1"], "Did you mean 'temperature'?"),
        (["pretrain", "missing.yaml"], "'missing.yaml': no such file"),
        (["pretrain", "digits/simclr", "backbone.name=resnet81"], "timm has no such model. Did"),
        (["pretrain", "digits/simclr", "device=tpu9"], "device=tpu9"),
        (["pretrain", "digits/simclr", "batch_size=5000"], "only 1437 images"),
        (["pretrain", "digits/simclr", "data.path=nowhere"], "data.path=nowhere: no such"),
        (["knn", "nowhere"], "'nowhere': no such run folder or file of weights"),
        (["linear", "nowhere", "fraction=0.1"], "'nowhere': no such run folder"),
        (["finetune", "nowhere"], "'nowhere': no such run folder"),
        (["bench", "nowhere"], "'nowhere': no such grid or file"),
        (["bench", "digits", "epoch=3"], "Unknown key 'epoch'"),
        (["compare", "nowhere", "neither"], "'nowhere'"),
        (["show", "digits/simclr", "views=x"], "views=x: no such preset"),
        (
            ["pretrain", "digits/simclr", "method.name=mae"],
            "makes 2 of an image, mae takes 1",
        ),
        (["pretrain", "digits/simclr", "views.0.count=3"], "an image, simclr takes 2"),
        (
            ["pretrain", "digits/dino", "views.0.count=1"],
            "dino takes at least 2",
        ),
        (
            ["pretrain", "digits/simclr", "method.name=simmim", "views.0.count=1"],
            "simmim: works on the patches of a plain Vision Transformer; set for example",
        ),
        (["pretrain", "digits/ibot", "views.0.size=18"], "views.0.size=18: not a multiple of"),
        (["pretrain", "digits/mae", "method.decoder_dim=66"], "a multiple of 4, not 66"),
        (["pretrain", "digits/mae", "method.decoder_heads=5"], "decoder_heads=5 does not divide"),
        (["pretrain", "digits/ijepa", "method.predictor_heads=5"], "predictor_heads=5 does not"),
        (["pretrain", "digits/lejepa", "method.knots=4"], "knots=4 is not odd"),
        (["pretrain", "digits/supervised", "method.classes=7"], "data have 10; set 10"),
        (
            ["pretrain", "digits/supcon", "data.labels=false"],
            "have none; name labelled",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capsys, *arguments)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("selfsight: ")
    assert message in line
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_a_mistake_in_a_real_process(tmp_path):
    done = selfsight("pretrain", "digits/simclr", "epochs=zero", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "epochs=zero" in done.stderr


def test_views_draws_a_sheet(monkeypatch, capsys, tmp_path):
    target = tmp_path / "sheet.png"
    arguments = ["views", "digits/simclr", "-o", str(target), "--rows", "3", "--epochs", "2"]
    code, _, _ = in_process(monkeypatch, capsys, *arguments)
    assert code == 0
    sheet = Image.open(target)
    # an original and 2 views in each of 2 epochs, 64 px and a gap each
    assert sheet.size == (5 * 68 + 16, 3 * 68 + 4)
    assert len(sheet.convert("L").getcolors()) > 10


def test_show_recipes_schema(monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, "show", "digits/simclr", "epochs=3")
    assert code == 0
    assert re.search(r"epochs +3 +command line", out)
    assert re.search(r"optimizer\.momentum +0\.9 +default", out)
    code, out, _ = in_process(monkeypatch, capsys, "recipes")
    assert re.search(r"^cifar10/byol +BYOL on CIFAR-10", out, re.MULTILINE)
    code, out, _ = in_process(monkeypatch, capsys, "schema")
    assert "temperature" in json.dumps(json.loads(out)["$defs"])


def test_help_names_every_command_in_a_panel():
    cli.register_all()
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    panels, panel = {}, None
    for line in help_text.splitlines():
        if title := re.match(r"╭─ ([\w ]+?) ─", line):
            panel = title[1]
        elif row := re.match(r"│ ([a-z][\w-]*) ", line):
            panels[row[1]] = panel
    commands = {c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands}
    assert len(commands) == 27
    assert panels.keys() == commands
    assert list(dict.fromkeys(panels.values())) == [
        "Train",
        "Evaluate",
        "Use an encoder",
        "Data",
        "Compare",
        "Other systems",
        "What is shipped",
    ]


def test_the_version(monkeypatch, capsys):
    assert in_process(monkeypatch, capsys, "--version")[:2] == (0, f"selfsight {__version__}\n")


def test_recipes_complete_in_a_shell():
    """As bash asks for it; torch would take seconds at every press of the key."""
    code = (
        "import sys; from selfsight import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    asked = {"_SELFSIGHT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    asked["COMP_WORDS"] = "selfsight pretrain digits/moco"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["digits/moco_v1", "digits/moco_v2", "digits/moco_v3"], done


PLUGIN = """
import contextlib

def register(app):
    app.command(name="hello")(lambda: print("from a plug-in"))

class File:
    phase = "pretrain"
    translated = contextlib.nullcontext

    def __init__(self, keys):
        self.keys = keys

    def compose(self, run=None):
        from selfsight.pretraining.config import compose
        return compose("digits/simclr", self.keys, run, "the file of a stranger")

    def start_processes(self, device):
        pass

def open_file(path, keys, opts):
    return File(keys) if path.suffix == ".mine" else None
"""


def test_any_package_can_plug_in(tmp_path):
    """Commands and files of a package that selfsight has never heard of."""
    (tmp_path / "stranger.py").write_text(PLUGIN)
    (tmp_path / "stranger-1.dist-info").mkdir()
    entry = "[selfsight.plugins]\nstranger = stranger\n"
    (tmp_path / "stranger-1.dist-info" / "entry_points.txt").write_text(entry)
    (tmp_path / "stranger-1.dist-info" / "METADATA").write_text("Name: stranger\nVersion: 1\n")

    def call(*words: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-m", "selfsight", *words],
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    assert call("hello").stdout == "from a plug-in\n"
    shown = call("show", "any.mine", "epochs=7")
    assert re.search(r"epochs +7 +the file of a stranger", shown.stdout), shown.stderr
    assert "run" in call("--help").stdout
    (tmp_path / "stranger.py").write_text("import a_package_that_is_missing")
    done = call("--help")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("selfsight: plug-in stranger=stranger: cannot be imported: No module")


def test_photographs_without_labels(photographs, tmp_path):
    keys = [*TINY, *heads("simclr"), "views=simclr", "views.0.size=48", "max_steps=2"]
    keys = [k for k in keys if k != "views=digits"]
    selfsight(
        "pretrain", "digits/simclr", *keys, f"data.path={photographs}", "--run", "p", cwd=tmp_path
    )
    done = selfsight("knn", "p", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "has no labels" in done.stderr


def test_cifar10_from_parquet(cifar10, tmp_path):
    keys = [*TINY, *heads("byol"), "views=byol-small", "max_steps=2", f"data.path={cifar10}"]
    keys = [k for k in keys if k != "views=digits"]
    done = selfsight("pretrain", "cifar10/byol", *keys, "--run", "c", cwd=tmp_path)
    assert "byol with resnet18 on 50,000 images (10 classes), cpu" in done.stderr
    config = yaml.safe_load((tmp_path / "c" / "config.yaml").read_text())
    assert config["data"]["path"] == str(cifar10)
    assert (tmp_path / "c" / "encoder.safetensors").exists()


def test_progress_names_no_rate_that_nobody_measured(capsys):
    with Progress() as watch:
        watch.images("packing", 5, 5)
    assert capsys.readouterr().err == "packing 5/5\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, command):
    (tmp_path / "file").write_text("not a folder")
    keys = [*TINY, *heads("simclr"), "max_steps=1"]
    done = command("pretrain", "digits/simclr", *keys, "--run", "file/run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("selfsight: 'file/run")
    assert len(done.stderr.splitlines()) == 1
