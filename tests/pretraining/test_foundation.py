"""From an encoder that exists: adapt it, distil it, and see whether it was worth it; end to end."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf

from selfsight.data.sources.arrays import Digits
from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.pretraining import job as jobs
from selfsight.pretraining import teacher as teachers
from selfsight.pretraining.build import build_method, with_hash
from selfsight.pretraining.config import RunConfig, compose
from selfsight.pretraining.recipes import recipes
from tests.conftest import TINY, heads, power_cuts, selfsight, teacher_file

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL = {  # recipe -> keys that make it small: patches of 14 or 16 stay as they are
    "heads": "method={hidden_dim: 16, bottleneck_dim: 8, output_dim: 24}",
    "views": ["views.0.size=42", "views.1.size=42", "views.2={size: 28, count: 1}"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of photographs of digits, and small encoders of the kinds that recipes name."""
    folder = tmp_path_factory.mktemp("world")
    source = Digits("train")
    for i in range(48):
        place = folder / "photos" / str(source.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(source.read(i)).resize((60, 50 + i % 3), Image.Resampling.BICUBIC)
        image.save(place / f"{i}.png")
    torch.manual_seed(0)
    for name, model, options in (
        ("dinov2", "vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 70}),
        ("dinov3", "vit_small_patch16_dinov3", VIT),
    ):
        built = timm.create_model(model, num_classes=0, **options)
        save_for_hf(built, folder / name, model_args=VIT, safe_serialization=True)
    return folder


def adapt(name: str) -> list[str]:
    sizes = (42, 28) if name == "dinov2" else (48, 32)
    keys = [f"data.path={'photos'}", f"weights=timm:local-dir:{name}", SMALL["heads"]]
    keys += [f"views.{n}.size={size}" for n, size in ((0, sizes[0]), (1, sizes[0]), (2, sizes[1]))]
    keys += ["views.2.count=1", "batch_size=16", "max_steps=10", "device=cpu", "log_every=1"]
    return [*keys, "evaluate.every_epochs=0", "schedule.warmup_epochs=0"]


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_adapt_and_measure(world, name):
    """`selfsight pretrain adapt/NAME data.path=PHOTOS weights=timm:local-dir:...`, then knn."""
    run = f"runs/{name}"
    selfsight("pretrain", f"adapt/{name}", *adapt(name), "--run", run, cwd=world)
    config = (world / run / "config.yaml").read_text()
    model = {"dinov2": "vit_small_patch14_reg4_dinov2", "dinov3": "vit_small_patch16_dinov3"}[name]
    assert f"name: {model}" in config
    assert ("global_pool: token" in config) == (name == "dinov3")  # as DINOv3 evaluates itself
    assert "drop_path: 0.1" in config  # of the recipe, though the weights are others
    losses = [r["loss"] for r in read_metrics(world / run / "metrics.jsonl")]
    assert len(losses) == 10
    assert np.isfinite(losses).all()
    given = load_file(next((world / name).glob("*.safetensors")))
    start, after = (load_file(world / run / f"{n}.safetensors") for n in ("start", "encoder"))
    key = "blocks.0.mlp.fc1.weight"
    assert torch.equal(start[key], given[key])
    assert not torch.equal(after[key], given[key])
    done = selfsight("knn", run, "device=cpu", "pixels=false", cwd=world)
    assert re.search(r"training made the encoder .* than what it started from", done.stdout)
    rows = [r["evaluated"] for r in json.loads((world / run / "results.json").read_text())]
    assert rows == ["encoder", "start", "untrained"]


@pytest.mark.parametrize("name", [n for n in recipes() if n.startswith("distill/")])
def test_distil_into_the_students_of_the_recipes(world, name):
    """`selfsight pretrain distill/NAME data.path=PHOTOS teacher.weights=...`"""
    run, student = f"runs/{name.replace('/', '-')}", name.partition("/")[2]
    options = VIT if "vit" in student else {"layers": [1] * 4, "channels": [8, 8, 16, 16]}
    keys = ["data.path=photos", "teacher={weights: 'timm:local-dir:dinov2', image_size: 42}"]
    keys += [f"backbone.options={json.dumps(options)}", "method={hidden_dim: 16}"]
    keys += ["views.0.size=48", "batch_size=16", "max_steps=4", "device=cpu", "log_every=1"]
    keys += ["evaluate.every_epochs=0", "schedule.warmup_epochs=0"]
    done = selfsight("pretrain", name, *keys, "--run", run, cwd=world)
    assert "teacher.weights=timm:local-dir:dinov2: timm:" in " ".join(done.stderr.split())
    losses = [r["loss"] for r in read_metrics(world / run / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    about = json.loads((world / run / "encoder.json").read_text())
    assert len(about["pretrained_on"]["teacher_sha256"]) == 64
    assert not (world / run / "start.safetensors").exists()  # the student started at random


# The teacher --------------------------------------------------------------------------------------


def config_of(folder, *keys: str) -> RunConfig:
    overrides = [*TINY, *heads("distill"), "precision=fp32", "views.0.count=1", *keys]
    return compose("digits/simclr", overrides, str(folder)).config


def test_a_run_is_a_teacher_in_its_own_colours_and_size(tmp_path):
    colours = ["data.mean=[0.1, 0.2, 0.3]", "data.std=[0.5, 0.5, 0.6]"]
    first = compose("digits/simclr", [*TINY, *colours, "max_steps=1"], str(tmp_path / "t")).config
    jobs.pretrain(first, quiet=True)
    config = config_of(
        tmp_path / "s",
        f"teacher={{weights: {tmp_path / 't'}, backbone: null, image_size: null}}",
        "views.0.size=24",
    )
    method = build_method(config)
    encoder = __import__("selfsight").load_encoder(tmp_path / "t")
    pixels = torch.rand(4, 3, 24, 24)

    def normalised(x, data):
        mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
        return (x - mean) / std

    smaller = torch.nn.functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = encoder(normalised(smaller, first.data))
        found = method.teacher(normalised(pixels, config.data)).image
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_another_teacher_is_another_run(tmp_path):
    config = config_of(tmp_path / "run", "max_steps=1")
    jobs.pretrain(config, quiet=True)
    jobs.pretrain(config, quiet=True)  # the same one continues
    other = load_file(teacher_file())
    other["norm.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    changed = config_of(
        tmp_path / "run", "max_steps=1", f"teacher.weights={tmp_path / 'other.pth'}"
    )
    assert with_hash(changed).teacher.weights_sha256 != with_hash(config).teacher.weights_sha256
    with pytest.raises(UserError, match="holds another configuration"):
        jobs.pretrain(changed, quiet=True)


FIXED = "views=[{size: 16, crop_scale: [1, 1], crop_ratio: [1, 1]}]"


def test_a_cached_teacher_changes_nothing_and_is_asked_once(tmp_path, monkeypatch):
    asked = []
    forward = teachers.FrozenTeacher.forward

    def counted(self, x):
        asked.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(teachers.FrozenTeacher, "forward", counted)
    keys = [FIXED, "data.limit=128", "epochs=3", "batch_size=64"]
    counts, weights = [], []
    for name in ("plain", "cached"):
        asked.clear()
        cache = f"teacher.cache={'true' if name == 'cached' else 'false'}"
        jobs.pretrain(config_of(tmp_path / name, *keys, cache), quiet=True)
        counts.append(sum(asked))
        weights.append(load_file(tmp_path / name / "encoder.safetensors"))
    tried = 1  # image, by which widths are measured
    assert counts[0] == tried + 128 + 3 * 128  # the standardisation, then each epoch
    assert counts[1] == 2 * tried + 128  # the memory is measured, too
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)


def test_interrupted_distillation_goes_on_with_its_first_standardisation(tmp_path, monkeypatch):
    keys = ["max_steps=4", "checkpoint={every_steps: 1, every_epochs: 0}", "method.queue_weight=1"]
    jobs.pretrain(config_of(tmp_path / "whole", *keys), quiet=True)
    power_cuts(monkeypatch, 3)
    with pytest.raises(RuntimeError):
        jobs.pretrain(config_of(tmp_path / "cut", *keys), quiet=True)
    jobs.pretrain(config_of(tmp_path / "cut", *keys), quiet=True)
    whole, cut = (tmp_path / name / "encoder.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["teacher.weights=null"], "teacher.weights=null: distill learns from a frozen teacher"),
        (["teacher.weights=nowhere"], "teacher.weights=nowhere: No such file"),
        (
            ["teacher={weights: 'timm:local-dir:no', backbone: null}"],
            "teacher.weights=timm:local-dir:no: this folder needs config.json",
        ),
        (["teacher.backbone=null"], "does not say which encoder it holds; add teacher.backbone"),
        (["method=simclr", "views.0.count=2"], "teacher.weights: simclr has no frozen teacher"),
        (["method=simclr", "data.path=nowhere"], "simclr has no"),  # before data are opened
        (
            [
                "method=simclr",
                "teacher={weights: null, backbone: null, image_size: null, cache: true}",
            ],
            "teacher.cache: simclr has no frozen teacher",
        ),
        (["teacher.weights=null", "data.path=nowhere"], "teacher.weights=null: distill learns"),
        (["teacher.cache=true"], "teacher.cache=true: views.0 are drawn anew each time"),
        (["teacher.mean=[0.5]", "teacher.std=[0.5]"], "the images have 3 channels"),
        (["teacher.std=[0.1, 0, 0.1]"], "teacher.std=[0.1, 0, 0.1]: pixels are divided by it"),
        (["teacher.image_size=0"], "teacher.image_size=0: give the side in pixels"),
        (["teacher.weights_sha256=abc"], "the hash of this file is not teacher.weights_sha256"),
        (["teacher.image_size=18"], "teacher.image_size=18: not a multiple of 4 pixels"),
    ],
)
def test_mistakes_are_one_line(tmp_path, keys, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        jobs.pretrain(config_of(tmp_path / "run", "max_steps=1", *keys), quiet=True)
    assert "\n" not in str(error.value)


def test_a_cache_that_would_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "physical_memory", lambda: 2**20)
    config = config_of(tmp_path / "run", "max_steps=1", FIXED, "teacher.cache=true")
    with pytest.raises(UserError, match=r"the features of 1,437 images are .* GiB"):
        jobs.pretrain(config, quiet=True)


def test_gram_anchoring_needs_an_encoder_to_stay_close_to(tmp_path):
    keys = [*TINY, *heads("dinov3"), "max_steps=1"]
    alone = [key for key in keys if not key.startswith("teacher")]
    config = compose(
        "digits/simclr",
        [*alone, "views=dinov2-small", "views.0.size=16", "views.1.size=16"],
        str(tmp_path),
    ).config
    with pytest.raises(UserError, match=r"teacher.weights=null: dinov3 keeps close to the encoder"):
        jobs.pretrain(config, quiet=True)
