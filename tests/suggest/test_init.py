"""`selfsight init` on images of every kind: the recipe that it writes trains."""

import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from selfsight.data.config import DataConfig
from selfsight.errors import UserError
from selfsight.pretraining.config import compose, read_run_config
from selfsight.suggest import look, plan
from selfsight.suggest.facts import ImageFacts, Machine, Pace

BANDS = 12


def photo_crops(count: int, side: int = 32) -> np.ndarray:
    """(count, side, side, 3) uint8, of two photographs in turns."""
    generator = np.random.default_rng(0)
    crops = []
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        top, left = (int(generator.integers(0, s - side)) for s in photo.shape[:2])
        crops.append(photo[top : top + side, left : left + side])
    return np.stack(crops)


def photographs(folder: Path, source: Path) -> list[str]:
    folder.mkdir()
    for file in sorted(source.glob("*.JPEG"))[:16]:
        shutil.copy(file, folder)
    return [str(folder)]


def class_folders(folder: Path, split: bool = True) -> list[str]:
    for number, crop in enumerate(photo_crops(24, 48)):
        part = ("train" if number < 16 else "test") if split else "."
        place = folder / part / ("temple", "flower")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(place / f"{number}.png")
    return [str(folder)]


def gray_files(folder: Path) -> list[str]:
    folder.mkdir()
    for number, crop in enumerate(photo_crops(20, 28)):
        Image.fromarray(crop[..., 1]).save(folder / f"{number}.png")
    return [str(folder)]


def band_files(folder: Path) -> list[str]:
    folder.mkdir()
    for number, crop in enumerate(photo_crops(16)):
        values = (200 + np.tile(crop, 4) * 3.5).astype(np.uint16)  # (32, 32, 12)
        file = folder / f"{number}.tif"
        tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")
    return [str(folder)]


def npz(folder: Path) -> list[str]:
    folder.mkdir()
    labels = np.arange(16) % 2
    np.savez(folder / "set.npz", images=photo_crops(16), labels=labels)
    return [str(folder / "set.npz")]


def band_arrays(folder: Path) -> list[str]:
    """(N, C, H, W) floating-point numbers."""
    folder.mkdir()
    values = np.tile(photo_crops(16), 2)[..., :5].transpose(0, 3, 1, 2) / np.float32(255)
    np.savez(folder / "set.npz", images=values, labels=np.arange(16) % 2)
    return [str(folder / "set.npz")]


def pack(folder: Path, command) -> list[str]:
    files = class_folders(folder.with_name("files"))
    done = command("pack", *files, "-o", str(folder), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return [str(folder)]


def band_pack(folder: Path, command) -> list[str]:
    keys = [*band_files(folder.with_name("files")), f"data.channels={BANDS}", "data.bits=16"]
    done = command("pack", *keys, "--raw", "--size=32", "-o", str(folder), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return [str(folder)]


def planned(path: str, file: Path, rate: float = 100.0, minutes: float = 0.5, **keys):
    """The suggestion for a path, without measuring."""
    data = DataConfig(path=path, **keys)
    pace = Pace(rate, 10, "backward", 0.1)
    return plan.suggest(data, file, minutes, "cpu", measure=lambda _: pace)


KINDS = {
    # kind: channels, bits, side of the views, classes
    "photographs": (3, 8, 128, 0),
    "class_folders": (3, 8, 48, 2),
    "gray_files": (1, 8, 28, 0),
    "band_files": (BANDS, 16, 32, 0),
    "npz": (3, 8, 32, 2),
    "band_arrays": (5, 16, 32, 2),
    "pack": (3, 8, 48, 2),
    "band_pack": (BANDS, 16, 32, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_trains(tmp_path, request, command, kind):
    channels, bits, side, classes = KINDS[kind]
    if kind == "photographs":
        (path,) = photographs(tmp_path / "set", request.getfixturevalue("photographs"))
    elif kind.endswith("pack"):
        (path,) = globals()[kind](tmp_path / "set", command)
    else:
        (path,) = globals()[kind](tmp_path / "set")
    made = planned(path, tmp_path / "recipe.yaml")
    done = command("pretrain", "recipe.yaml", "max_steps=2", "--run", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = read_run_config(tmp_path / "run")
    assert (config.data.channels, config.data.bits) == (channels, bits)
    assert (config.views[0].size, made.images.classes) == (side, classes)
    counts = {
        "npz": 12,
        "band_arrays": 12,
        "gray_files": 20,
    }  # of the arrays with labels, 4 are held out
    assert made.images.count == counts.get(kind, 16)
    assert made.images.own_test is (kind in ("class_folders", "pack"))
    if bits == 16:
        assert config.data.range is not None


def test_the_command_measures_writes_and_says_what_is_next(tmp_path, command):
    (path,) = class_folders(tmp_path / "my set")
    done = command("init", path, "--minutes=0.2", "--device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *warnings, title, pretrain, knn, report = done.stdout.splitlines()
    assert first.startswith("Wrote recipes/my-set.yaml: BYOL, ")
    assert "images/s measured" in first
    assert warnings[0].startswith("- Only 16 images")
    assert title == "Next:"
    assert pretrain == "  selfsight pretrain recipes/my-set.yaml --run runs/my-set"
    assert (knn, report) == ("  selfsight knn runs/my-set", "  selfsight report runs/my-set")
    text = (tmp_path / "recipes/my-set.yaml").read_text()
    assert command("recipes", cwd=tmp_path).stdout.count("BYOL on my-set: 16 images") == 1
    again = command("init", path, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("selfsight: 'recipes/my-set.yaml' exists")
    assert "-o" in again.stderr
    assert (tmp_path / "recipes/my-set.yaml").read_text() == text
    done = command(*pretrain.split()[1:], "max_steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_text_depends_on_nothing_but_facts_and_measurements(tmp_path):
    (path,) = class_folders(tmp_path / "set")
    texts = []
    for name in ("a.yaml", "b.yaml"):
        planned(path, tmp_path / name)
        texts.append((tmp_path / name).read_text().replace(name, ""))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "contains no images"),
        ({"notes.txt": b"none"}, "contains no images"),
        ({"one.png": None}, "holds only one image"),
        ({"a.png": b"broken", "b.png": b"too"}, "none of the images can be decoded"),
    ],
)
def test_nothing_to_train_on_is_one_line(tmp_path, command, content, words):
    (tmp_path / "set").mkdir()
    for name, data in content.items():
        if data is None:
            Image.fromarray(photo_crops(1)[0]).save(tmp_path / "set" / name)
        else:
            (tmp_path / "set" / name).write_bytes(data)
    done = command("init", "set", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("checking")]
    assert words in line
    assert not (tmp_path / "recipes").exists()


def test_bad_options_are_one_line(tmp_path, command):
    gray_files(tmp_path / "set")
    mistakes = (
        (["--minutes=0"], "--minutes=0"),
        (["--minutes=inf"], "=inf"),
        (["--device=abc"], "device=abc"),
    )
    for options, words in mistakes:
        done = command("init", "set", *options, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_broken_images_are_named_and_allowed(tmp_path, command):
    (path,) = gray_files(tmp_path / "set")
    (tmp_path / "set" / "bad\nname: {.png").write_bytes(b"no image")
    made = planned(path, tmp_path / "recipe.yaml")
    assert made.images.broken == 1
    assert any("bad" in line for line in made.warnings)
    done = command("pretrain", "recipe.yaml", "max_steps=2", "--run", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["a # b", "a: {b", "a\nepochs: 7", "ü'\"", "{x}", "a\u2028b", "-"])
def test_names_of_folders_change_no_other_key(tmp_path, name):
    (path,) = gray_files(tmp_path / name)
    planned(path, tmp_path / "recipe.yaml")
    config = compose(str(tmp_path / "recipe.yaml")).config
    assert config.data.path == path
    assert config.epochs != 7


def test_what_the_user_says_stays(tmp_path):
    (path,) = gray_files(tmp_path / "set")
    planned(path, tmp_path / "recipe.yaml", channels=3, mean=(0.1, 0.2, 0.3), max_bad=0.5)
    data = compose(str(tmp_path / "recipe.yaml")).config.data
    assert (data.channels, data.mean, data.max_bad) == (3, (0.1, 0.2, 0.3), 0.5)


def test_a_cheaper_encoder_is_taken_where_time_is_short(tmp_path):
    (path,) = class_folders(tmp_path / "set")
    seen = []

    def measure(config):
        seen.append(config.backbone.options["channels"][0])
        return Pace(1.0 * len(seen), 10, "backward", 0.1)

    made = plan.suggest(DataConfig(path=path), tmp_path / "r.yaml", 1.0, "cpu", measure=measure)
    assert seen == [64, 32]  # 2 images/s in a minute are 6 epochs of 16, and 5 checks
    assert made.setup.encoder == "narrow ResNet"
    assert (made.length.epochs, made.length.max_steps) == (6, None)
    text = (tmp_path / "r.yaml").read_text()
    assert "400 would learn more" in text
    assert f"selfsight pretrain {tmp_path / 'r.yaml'} epochs=400" in text


def test_code_of_the_users_own_is_named_in_each_command(tmp_path, command, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "class Photos:\n"
        "    targets = [n % 2 for n in range(16)]\n"
        "    def __init__(self, train=True):\n"
        "        generator = np.random.default_rng(train)\n"
        "        self.x = generator.integers(0, 256, (16, 20, 20, 3), np.uint8)\n"
        "    def __len__(self): return 16\n"
        "    def __getitem__(self, i): return self.x[i], i % 2\n"
    )
    monkeypatch.setattr(plan, "LONGEST", 1e-3)
    done = command("init", "data.source=mine.py:Photos", "--device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pretrain, knn, _ = (line.split()[1:] for line in done.stdout.splitlines()[-3:])
    for words in ([*pretrain, "max_steps=2"], knn):
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_batch_that_does_not_fit_is_halved(tmp_path, monkeypatch):
    """A GPU says how much memory it has, and another program may use it."""
    facts = ImageFacts(count=5_000, looked=2_000, shorter=300)
    monkeypatch.setattr(plan, "look_at_images", lambda *_: facts)
    gpu = Machine("cuda", "A GPU", 140 * 2.0**30, 8, True, 2.0**40)
    monkeypatch.setattr(plan, "look_at_machine", lambda *_: gpu)
    tried = []

    def measure(config):
        tried.append(config.batch_size)
        if config.batch_size > fits:
            raise torch.OutOfMemoryError
        return Pace(1_000.0, 10, "forward", 0.1)

    fits = 64
    made = plan.suggest(DataConfig(path="x"), tmp_path / "r.yaml", measure=measure)
    assert tried == [256, 128, 64]
    config = compose(str(tmp_path / "r.yaml")).config
    assert (config.batch_size, made.setup.batch) == (64, 64)
    assert config.optimizer.lr == pytest.approx(1e-3 * (64 / 128) ** 0.5, rel=1e-3)
    fits = 0
    with pytest.raises(UserError, match="does not fit into the memory of A GPU"):
        plan.suggest(DataConfig(path="x"), tmp_path / "s.yaml", measure=measure)


def test_the_machine_is_this_one(tmp_path):
    machine = look.look_at_machine("cpu", tmp_path / "not" / "there")
    assert (machine.kind, machine.is_gpu) == ("cpu", False)
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.disk <= shutil.disk_usage(tmp_path).total


def test_facts_of_duplicates_and_of_test_images_among_the_training_images(tmp_path):
    (path,) = class_folders(tmp_path / "set")
    for number in range(3):
        shutil.copy(
            tmp_path / "set/train/temple/0.png", tmp_path / f"set/train/temple/x{number}.png"
        )
    shutil.copy(tmp_path / "set/train/temple/0.png", tmp_path / "set/test/flower/y.png")
    made = planned(path, tmp_path / "recipe.yaml")
    assert (made.images.count, made.images.repeated, made.images.shared) == (19, 3, 1)
    assert (made.images.most, made.images.least) == (11, 8)
    assert any("3 of 19 images are equal" in line for line in made.warnings)
    assert any("1 test images are among" in line for line in made.warnings)


def test_without_a_test_split_a_part_is_held_out_and_said(tmp_path):
    (path,) = class_folders(tmp_path / "set", split=False)
    made = planned(path, tmp_path / "recipe.yaml")
    assert (made.images.own_test, made.images.count + made.images.test) == (False, 24)
    assert any("No test split" in line for line in made.warnings)


def test_large_sets_are_looked_at_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(look, "LOOKED_AT", 10)
    (path,) = class_folders(tmp_path / "set")
    made = planned(path, tmp_path / "recipe.yaml")
    assert (made.images.count, made.images.looked, made.images.most) == (16, 10, 8)
    assert "(of 10 that were looked at)" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_start_from_pretrained_weights_is_a_valid_command(tmp_path, request, no_network, mode):
    (path,) = photographs(tmp_path / "a set", request.getfixturevalue("photographs"))
    for file in Path(path).iterdir():
        with Image.open(file) as image:
            image.convert(mode).save(file)
    planned(path, tmp_path / "recipe.yaml")
    config = composed_from((tmp_path / "recipe.yaml").read_text().splitlines()[-1])
    assert config.data.path == path
    names = {"RGB": "vit_small_patch14_dinov2.lvd142m", "L": "resnet18.a1_in1k"}
    assert config.weights == f"timm:{names[mode]}"
    assert config.data.channels == (3 if mode == "RGB" else 1)
    assert config.backbone.name == names[mode].partition(".")[0]


def test_the_longer_training_is_one(tmp_path):
    """Also of a recipe that ends within its first epoch."""
    (path,) = class_folders(tmp_path / "set")
    for rate, name in ((1.0, "a.yaml"), (1e-2, "b.yaml")):
        made = planned(path, tmp_path / name, rate)
        assert (made.length.max_steps is None) == (rate == 1.0)
        text = (tmp_path / name).read_text().splitlines()
        config = composed_from(next(line for line in text if " epochs=400" in line))
        assert (config.epochs, config.max_steps) == (400, None)
        assert config.schedule.warmup_epochs == 10


def composed_from(line: str):
    """The configuration of a command in a comment."""
    program, word, what, *keys = shlex.split(line.removeprefix("#"))
    assert (program, word) == ("selfsight", "pretrain")
    run = keys.pop() if "--run" in keys else None
    return compose(what, [key for key in keys if key != "--run"], run).config


def test_another_file_is_another_run(tmp_path, monkeypatch):
    """Two plans for the same images would else share one folder, which the second cannot use."""
    monkeypatch.chdir(tmp_path)
    made = planned(*class_folders(tmp_path / "photos"), Path("slow.yaml"))
    assert made.run == "runs/slow" == compose("slow.yaml").config.run
