"""The model card: its code runs, its numbers are those of results.json, its names do no harm."""

import math
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from selfsight.encoders.encoder import load_encoder
from selfsight.evaluate.interval import wilson
from selfsight.export.card import plain, without_folders
from selfsight.export.export import export
from selfsight.export.measured import NOTHING
from tests.export.made import TINY, encoder, record, with_results


def card_of(folder, tmp_path, to="timm", **more):
    export(folder, to, tmp_path / "out", **more)
    return (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def head_of(card):
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2}
VIT = {"name": "vit_tiny_patch16_224", "options": VIT}


@pytest.mark.parametrize(("to", "channels", "bits"), [("timm", 3, 8), ("onnx", 4, 16)])
def test_its_code_runs_as_it_stands(tmp_path, monkeypatch, to, channels, bits):
    run = encoder(tmp_path / "run", VIT, channels=channels, bits=bits)
    card = card_of(run, tmp_path, to)
    monkeypatch.chdir(tmp_path / "out")
    Image.new("RGB", (300, 200), (90, 120, 30)).save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    # of both libraries: to load it, to use it, and to prepare images of any size
    assert len(blocks) == (6 if to == "timm" else 2)
    names: dict = {}
    for block in blocks:
        exec(block, names)
        if "features(torch.stack" in block or "features(np.stack" in block:
            lines = [line for line in block.splitlines() if line.startswith("features(")]
            assert tuple(eval(lines[0], names).shape) == (1, 16)


def test_without_results_it_says_so(tmp_path):
    card = card_of(encoder(tmp_path / "run", TINY), tmp_path)
    assert NOTHING in card
    assert "%" not in card.replace("95 %", "")
    assert head_of(card) == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["selfsight", "image-feature-extraction", "simclr"],
    }


def test_its_numbers_are_those_of_the_results(tmp_path):
    run = encoder(tmp_path / "run", TINY)
    few = {"metrics": {"shots1": 0.5, "shots1_std": 0.012}, "protocol": "linear", "seed": 3}
    with_results(
        run,
        record(run),
        record(run, "untrained", metrics={"k20": 0.25}),
        record(run, "untrained", metrics={"k20": 0.11}, seed=4),  # of no encoder's record
        record(run, weights_sha256="0" * 64, metrics={"k20": 0.99}),  # of another encoder
        record(run, **few),
        record(run, "start", **few),
    )
    card = card_of(run, tmp_path, license="mit", datasets=["org/set"])
    low, high = interval(0.75, 400)
    row = f"| this encoder | kNN, k = 20 | 75.0 | {100 * low:.1f} to {100 * high:.1f} |"
    assert row in card
    assert "| untrained encoder | kNN, k = 20 | 25.0 |" in card
    assert "| this encoder | 1 label a class | 50.0 ± 1.2 | - |" in card
    assert "| what it started from | 1 label a class | 50.0 ± 1.2 | - |" in card
    assert "99.0" not in card
    assert "11.0" not in card
    assert "0 by path, 3 by content (allowed)" in card
    assert "over the test images of one seed" in card
    assert (head_of(card)["license"], head_of(card)["datasets"]) == ("mit", ["org/set"])


def interval(share, n, z=1.959964):
    """Wilson's, by its formula."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("share", "n"), [(0.5, 100), (0.961, 360), (1.0, 20), (0.0, 7)])
def test_the_interval_is_wilsons(share, n):
    counted = round(share * n) / n
    assert wilson(share, n) == pytest.approx(interval(counted, n), abs=1e-6)


EVIL = "a|b`<script>x</script>\x1b[31m\n---\nlicense: gpl\n# [c](d)"


def test_names_are_text(tmp_path):
    run = encoder(tmp_path / "run", TINY, source="/home/someone/secret/my_set.py:Photos")
    data = {"source": "/home/someone/x.py:Set", "path": "/home/someone", "train": 1, "test": 4}
    with_results(run, record(run, protocol=EVIL, data=data, settings={"images": "/home/a/b.txt"}))
    card = card_of(run, tmp_path, license=EVIL, datasets=[EVIL])
    assert "someone" not in card
    assert "my\\_set.py:Photos" in card
    assert "<script>" not in card.split("---\n", 2)[2]
    assert "\x1b" not in card
    head = head_of(card)
    assert head["library_name"] == "timm"
    assert head["license"].startswith("a|b`<script>")
    assert "/home" not in card


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("digits", "digits"),
        ("huggingface:org/name", "huggingface:org/name"),
        ("huggingface:/data/mine", "mine"),
        ("../x/y.py:Net", "y.py:Net"),
        ("a/b/net.py:Net", "net.py:Net"),
        ("C:\\nets\\a.py:Net", "a.py:Net"),
    ],
)
def test_names_lose_their_folders(name, shown):
    assert without_folders(name) == shown


def test_own_images_are_called_so(tmp_path):
    run = encoder(tmp_path / "run", TINY)
    data = {"source": "auto", "path": "/data/mine", "train": 8, "test": 4}
    with_results(run, record(run, data=data))
    assert "on own files: 8 training images" in card_of(run, tmp_path)


def test_a_photograph_is_turned_upright(tmp_path):
    """As by `embed`: phones store them turned, and say so."""
    run = encoder(tmp_path / "run", TINY, 112)
    card = card_of(run, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(pixels).resize((300, 200)).save(tmp_path / "photo.jpg", exif=turned)
    names = {"folder": str(tmp_path / "out")}
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    loading, usage, exact = (block.replace('folder = "."', "") for block in blocks[:3])
    usage = usage.replace("photo.jpg", str(tmp_path / "photo.jpg"))
    for block in (loading, exact, usage.replace("features(", "found = features(")):
        exec(block, names)
    expected = load_encoder(run).embed(tmp_path / "photo.jpg")
    assert torch.allclose(names["found"], expected, atol=1e-5)


def test_markup_is_escaped():
    assert plain("**a** <b> [c](d) &") == "\\*\\*a\\*\\* &lt;b&gt; \\[c\\](d) &amp;"
