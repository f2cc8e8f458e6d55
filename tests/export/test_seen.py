"""Which images timm's transform is set up for."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from selfsight.encoders.encoder import load_encoder
from selfsight.export.export import export
from selfsight.export.subject import open_subject
from tests.export.made import TINY, encoder


def folder_of(place, *sizes):
    place.mkdir()
    generator = np.random.default_rng(1)
    for n, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(place / f"{n}.png")
    return place


def test_small_views_of_photographs(tmp_path, command):
    """Prepared by timm alone, photographs of a usual size give almost the encoder's features."""
    photos = folder_of(tmp_path / "photos", *[(375, 300)] * 3)
    run = encoder(tmp_path / "run", TINY, 96, source="folder", path=photos)
    done = command("export", "run", "--to", "timm", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "photographs (3 of 3 images of the run have a side of more than 96" in done.stdout
    assert json.loads((tmp_path / "out" / "export.json").read_text())["input"]["pictures"] == (
        "photographs"
    )
    images = [Image.open(path) for path in sorted(photos.iterdir())]
    expected = load_encoder(run).embed(images)

    def difference(folder):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        about = timm.data.resolve_data_config({}, model=model)
        transform = timm.data.create_transform(**about)
        with torch.no_grad():
            found = model(torch.stack([transform(image) for image in images]))
        return float((found - expected).abs().max())

    assert export(run, "timm", tmp_path / "asked", pictures="small").why == "--images small"
    assert difference(tmp_path / "out") < difference(tmp_path / "asked") / 2


@pytest.mark.parametrize(
    ("sizes", "size", "found"),
    [
        ([(97, 20), (300, 200), (90, 90)], 32, "photographs"),
        ([(96, 96), (300, 200), (90, 90)], 32, "small"),
        ([(28, 28)] * 9, 224, "small"),
    ],
)
def test_most_of_the_runs_images_decide(tmp_path, sizes, size, found):
    photos = folder_of(tmp_path / "photos", *sizes)
    run = encoder(tmp_path / "run", TINY, size, source="folder", path=photos)
    assert open_subject(run).pictures == found


@pytest.mark.parametrize("size", [96, 97])
@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("folder", "moved"),
        ("webdataset", "https://example.org/{000..001}.tar"),
        ("torchvision:CIFAR10", "here"),
        ("huggingface:org/name", None),
        ("evil.py:Images", None),
    ],
)
def test_without_the_images_the_size_decides(tmp_path, monkeypatch, source, path, size):
    """Nothing is downloaded for it, and no code is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connects"))
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    run = encoder(tmp_path / "run", TINY, size, source=source, path=path)
    subject = open_subject(run)
    assert subject.pictures == ("small" if size == 96 else "photographs")
    assert f"sees {size} pixels, and the images of the run were not found" in subject.why
    assert not {"ran", "here"} & {place.name for place in tmp_path.iterdir()}


def test_a_file_without_its_run_looks_for_no_images(tmp_path):
    photos = folder_of(tmp_path / "photos", (300, 200), (300, 200))
    run = encoder(tmp_path / "run", TINY, 96, source="folder", path=photos)
    file = (run / "encoder.safetensors").rename(tmp_path / "alone.safetensors")
    assert open_subject(file).pictures == "small"
