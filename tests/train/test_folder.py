"""A run folder belongs to one configuration, to one process at a time, and to one set of images."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import read_run_config
from selfsight.train import session
from tests.train.test_train import config_of

BATCH = "batch_size=359"  # of the 1,437 digits: 4 steps an epoch


def pretrain(folder, *keys: str) -> None:
    jobs.pretrain(config_of(folder, *keys, method="simclr"), quiet=True)


# Two starts at one moment -------------------------------------------------------------------------


def test_the_configuration_is_that_of_the_process_that_trains(tmp_path, monkeypatch):
    """The second starts while the first opens its images, before config.yaml is written."""
    assemble, refused = jobs.assemble, []

    def slowly(*arguments):
        if not refused:
            refused.append(None)
            with pytest.raises(UserError, match="another process") as caught:
                pretrain(tmp_path / "run", "seed=2", "max_steps=1")
            refused.append(caught)
        return assemble(*arguments)

    monkeypatch.setattr(jobs, "assemble", slowly)
    pretrain(tmp_path / "run", "seed=1", "max_steps=1")
    assert len(refused) == 2
    assert read_run_config(tmp_path / "run").seed == 1


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(UserError, match="no such file or folder"):
            pretrain(tmp_path / name, "data.path=nowhere")
    assert {p.name: [f.name for f in p.iterdir()] for p in tmp_path.iterdir()} == {
        "mine": [".lock"]
    }
    pretrain(tmp_path / "mine", "max_steps=1")


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/run"])
def test_a_file_is_no_run_folder(tmp_path, name):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"--run"):
        pretrain(tmp_path / name, "max_steps=1")


# More epochs --------------------------------------------------------------------------------------


def test_a_longer_run_names_both_ways_to_go_on(tmp_path):
    pretrain(tmp_path / "run", BATCH, "epochs=1")
    for keys in (["epochs=2"], ["epochs=2", "max_steps=7"], ["epochs=1", "max_steps=3"]):
        with pytest.raises(UserError) as caught:
            pretrain(tmp_path / "run", BATCH, *keys)
        assert "add extend=true" in str(caught.value)
        assert f"resume={tmp_path / 'run'}" in str(caught.value)
    with pytest.raises(UserError, match="seed: 0 -> 1") as caught:
        pretrain(tmp_path / "run", BATCH, "epochs=2", "seed=1", "extend=true")
    assert "extend=true" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "keys"),
    [
        ("epochs=1", ["epochs=2"]),
        ("max_steps=4", ["max_steps=8"]),
        ("epochs=1", ["epochs=9", "max_steps=8"]),
    ],
)
def test_an_extended_run_is_as_if_planned_so(tmp_path, before, keys, capsys):
    """With a constant rate it is the same run, byte for byte."""
    constant = [BATCH, "schedule={name: constant, warmup_epochs: 0}"]
    pretrain(tmp_path / "whole", *constant, *keys)
    pretrain(tmp_path / "parts", *constant, before)
    pretrain(tmp_path / "parts", *constant, *keys, "extend=true")
    whole, parts = ((tmp_path / n / "encoder.safetensors").read_bytes() for n in ("whole", "parts"))
    assert whole == parts
    assert "is extended from 4 to 8 steps" in capsys.readouterr().err
    assert read_run_config(tmp_path / "parts").extend is False
    pretrain(tmp_path / "parts", *constant, *keys)  # it is a run of this length now


def test_the_finished_encoder_stays_until_the_new_one_is_saved(tmp_path, monkeypatch):
    run, longer = tmp_path / "run", [BATCH, "epochs=3", "extend=true"]
    pretrain(tmp_path / "planned", BATCH, "epochs=3")
    pretrain(run, BATCH, "epochs=1")
    before = (run / "encoder.safetensors").read_bytes()
    after = session.Session.after

    def stop(self, done, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        after(self, done, *rest)

    monkeypatch.setattr(session.Session, "after", stop)
    with pytest.raises(session.Interrupted, match="after step 5 of 12"):
        pretrain(run, *longer)
    assert (run / "encoder.safetensors").read_bytes() == before
    monkeypatch.undo()
    pretrain(run, *longer)
    assert (run / "encoder.safetensors").read_bytes() != before
    rates = [
        [r["lr"] for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("run", "planned")
    ]
    assert rates[0][4:] == rates[1][4:]


def test_a_run_is_not_made_shorter(tmp_path):
    pretrain(tmp_path / "run", BATCH, "epochs=2")
    config = (tmp_path / "run/config.yaml").read_bytes()
    for keys, steps in ((["epochs=1"], 4), (["epochs=9", "max_steps=7"], 7)):
        with pytest.raises(UserError, match=rf"extend=true: .*shorter \(8 -> {steps} steps\)"):
            pretrain(tmp_path / "run", BATCH, *keys, "extend=true")
    assert (tmp_path / "run/config.yaml").read_bytes() == config


# Other images -------------------------------------------------------------------------------------

POOL = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)


def train_on(folder, images, *keys: str) -> None:
    np.savez(folder / "in.npz", images=images)
    path = f"data.path={folder / 'in.npz'}"
    pretrain(folder / "run", path, "batch_size=40", "epochs=1", *keys)


def files(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("extend", [[], ["epochs=2", "extend=true"]])
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (POOL, "200 -> 300 images"),
        (POOL[:100], "200 -> 100 images"),
        (POOL[:10], "200 -> 10 images"),
        (POOL[100:], "other pixels"),
        (POOL[199::-1], "other pixels"),
    ],
)
def test_a_run_is_not_trained_on_other_images(tmp_path, images, said, finished, extend):
    train_on(tmp_path, POOL[:200])
    if not finished:
        (tmp_path / "run/encoder.safetensors").unlink()
    before = files(tmp_path / "run")
    with pytest.raises(UserError, match=rf"data\.path=.*\({said}\).*resume=") as caught:
        train_on(tmp_path, images, *extend)
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "run") == before
    train_on(tmp_path, POOL[:200])


def test_other_images_can_be_trained_on_in_another_folder(tmp_path):
    train_on(tmp_path, POOL[:200])
    np.savez(tmp_path / "in.npz", images=POOL)
    keys = [f"data.path={tmp_path / 'in.npz'}", "batch_size=40", f"resume={tmp_path / 'run'}"]
    pretrain(tmp_path / "other", *keys, "epochs=2")
    assert read_metrics(tmp_path / "other/metrics.jsonl")[0]["epoch"] == round(1 + 1 / 7, 4)


def test_a_run_that_has_saved_nothing_yet_takes_the_images_as_they_are(tmp_path, monkeypatch):
    """A first start that ended because of broken images, which were then removed."""
    monkeypatch.setattr(jobs, "fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_on(tmp_path, POOL[:200])
    assert (tmp_path / "run/config.yaml").is_file()
    monkeypatch.undo()
    train_on(tmp_path, POOL)
    with pytest.raises(UserError, match="300 -> 200 images"):
        train_on(tmp_path, POOL[:200])


def test_a_run_of_before_gets_the_identity_of_its_images(tmp_path):
    train_on(tmp_path, POOL[:200])
    (tmp_path / "run/data.json").rename(tmp_path / "data.json")
    with pytest.raises(UserError, match="200 -> 300 images"):  # encoder.json knows that much
        train_on(tmp_path, POOL)
    train_on(tmp_path, POOL[:200])
    assert (tmp_path / "run/data.json").read_bytes() == (tmp_path / "data.json").read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"images": "x"}', b"\xff"])
def test_a_damaged_identity_is_one_line(tmp_path, content):
    train_on(tmp_path, POOL[:200])
    (tmp_path / "run/data.json").write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json' is damaged; if the images are those"):
        train_on(tmp_path, POOL[:200])


def test_broken_images_may_be_repaired(tmp_path):
    for i in range(50):
        Image.fromarray(POOL[i]).save(tmp_path / f"{i:02}.png")
    whole = (tmp_path / "07.png").read_bytes()
    (tmp_path / "07.png").write_bytes(whole[:40])
    keys = [f"data.path={tmp_path}", "batch_size=25", "epochs=1"]
    with pytest.raises(UserError, match="Repair or"):
        pretrain(tmp_path / ".run", *keys)
    pretrain(tmp_path / ".run", *keys, "data.max_bad=0.1")
    (tmp_path / "07.png").write_bytes(whole)
    pretrain(tmp_path / ".run", *keys)
    (tmp_path / "08.png").write_bytes(whole)
    with pytest.raises(UserError, match=r"other content of the same names, such as .*08\.png"):
        pretrain(tmp_path / ".run", *keys)
