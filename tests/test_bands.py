"""A folder of 12-band TIFF files, made of real photographs, from pretraining to kNN."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from sklearn.datasets import load_sample_images

from tests.conftest import selfsight

BANDS = 12


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Crops of two photographs: their colours and their means over squares of 2, 4 and 8 pixels,
    as a camera of 12 bits stores them, with the sensor's offset."""
    folder = tmp_path_factory.mktemp("bands") / "scenes"
    generator = np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for number in range(30):
            top, left = (int(generator.integers(0, side - 32)) for side in photo.shape[:2])
            crop = photo[top : top + 32, left : left + 32].astype(np.float64)
            bands = [crop]
            for side in (2, 4, 8):
                means = crop.reshape(32 // side, side, 32 // side, side, 3).mean((1, 3))
                bands.append(means.repeat(side, 0).repeat(side, 1))
            values = 200 + np.concatenate(bands, axis=2) / 255 * 900  # of 4,095
            place = folder / ("test" if number >= 20 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(
                place / f"{number}.tif",
                values.astype(np.uint16),
                photometric="minisblack",
                planarconfig="contig",
            )
    return folder


def test_from_bands_to_knn(scenes):
    keys = [f"data.path={scenes}", f"data.channels={BANDS}", "data.bits=16", "data.range=auto"]
    keys += ["views=multispectral-small", "backbone={name: resnet18, small_images: true}"]
    keys += ["backbone.options={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}"]
    keys += [
        "method={hidden_dim: 16, output_dim: 8}",
        "batch_size=20",
        "max_steps=6",
        "log_every=1",
    ]
    keys += ["device=cpu", "evaluate.every_epochs=0", "optimizer.lr=1e-3"]
    home = scenes.parent
    checked = selfsight("check", *keys[:4], cwd=home).stdout
    assert f"{BANDS} channels" in checked
    selfsight("pretrain", "photos/simclr", *keys, "--run", "run", cwd=home)
    about = json.loads((home / "run" / "encoder.json").read_text())
    assert about["channels"] == BANDS
    low, high = about["data"]["range"]
    assert 190 < low < 300 < 1000 < high < 1101  # as used, not the 4,095 of 12 bits
    assert len(about["mean"]) == len(about["std"]) == BANDS
    assert all(0.1 < mean < 0.9 for mean in about["mean"])
    selfsight("knn", "run", "device=cpu", cwd=home)
    found = {r["evaluated"]: r for r in json.loads((home / "run" / "results.json").read_text())}
    assert list(found) == ["encoder", "untrained", "pixels"]
    assert found["pixels"]["metrics"]["k20"] > 0.7  # a temple is no flower
    # images of other bands are refused, in one line
    odd = tifffile.imread(next((scenes / "train").rglob("*.tif")))[..., :5]
    other = home / "other" / "train" / "a"
    other.mkdir(parents=True)
    for number in range(2):
        tifffile.imwrite(
            other / f"{number}.tif", odd, photometric="minisblack", planarconfig="contig"
        )
    done = selfsight(
        "pretrain",
        "photos/simclr",
        *keys[1:],
        "data.path=other",
        "batch_size=2",
        "--run",
        "other-run",
        cwd=home,
        check=False,
    )
    assert done.returncode == 2
    assert "data.channels=5" in done.stderr
    assert "Traceback" not in done.stderr
