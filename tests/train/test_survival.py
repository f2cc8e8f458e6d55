"""Real processes killed at random moments, over and over; the end is byte-identical."""

import random
import signal
import time

import pytest

from selfsight.logging.log import read_metrics
from tests.conftest import TINY, heads, selfsight
from tests.processes import Started


def keys(precision: str) -> list[str]:
    return [
        *TINY,
        *heads("moco_v2"),
        f"precision={precision}",
        "batch_size=128",
        "max_steps=40",
        "epochs=5",
        "checkpoint={every_epochs: 0, every_steps: 3}",
        "evaluate.every_epochs=2",
    ]


@pytest.mark.parametrize(("precision", "kills"), [("fp32", 2), ("bf16", 2)])
def test_kill_9_over_and_over(tmp_path, precision, kills):
    command = ["pretrain", "digits/simclr", *keys(precision)]
    selfsight(*command, "--run", "whole", cwd=tmp_path)
    moments = random.Random(0)
    killed = 0
    while killed < kills:
        process = Started(*command, "--run", "killed", cwd=tmp_path)
        # let it get some steps further, then strike at a random moment
        before = len(read_metrics(tmp_path / "killed" / "metrics.jsonl"))
        target = before + moments.randint(1, 8)
        while process.poll() is None:
            if len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) >= target:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert killed >= 2, "the run ended before it was killed twice; make it longer"
    done = selfsight(*command, "--run", "killed", cwd=tmp_path)
    assert "Continuing after step" in done.stderr
    whole, pieces = (
        (tmp_path / name / "encoder.safetensors").read_bytes() for name in ("whole", "killed")
    )
    assert whole == pieces
    steps = [r["step"] for r in read_metrics(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 41))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_tells_how_to_resume(tmp_path, number, code):
    command = ["pretrain", "digits/simclr", *keys("fp32"), "max_steps=100000", "epochs=10000"]
    process = Started(*command, "--run", "run", cwd=tmp_path)
    while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    done = process.wait(60)
    assert done.returncode == code
    last = done.stderr.strip().splitlines()[-1]
    assert "Stopped after step" in last
    assert "Resume with: " in last
    assert "--run run" in last
    assert "Traceback" not in done.stderr
    step = int(last.split("after step ")[1].split()[0])
    names = [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.pt")]
    assert any(name.startswith(f"step-{step:08d}.") for name in names)
