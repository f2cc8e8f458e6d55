"""A collapsed run is noticed within an epoch, and a healthy one is left alone."""

import pytest

from selfsight.logging.log import read_metrics
from selfsight.losses import negative_cosine
from selfsight.methods.method import Batch, Output
from selfsight.methods.simsiam import SimSiam
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import compose
from selfsight.train import collapse, session
from tests.conftest import TINY, heads


class Said(list):
    def print(self, text: str, **_) -> None:
        self.append(text)


def train(folder, monkeypatch, *keys: str) -> tuple[list[str], list[dict]]:
    said = Said()
    monkeypatch.setattr(session, "console", said)
    overrides = [*TINY, *heads("simsiam"), *keys]
    config = compose("digits/simclr", overrides, str(folder)).config
    jobs.pretrain(config, quiet=True)
    lines = [line for line in said if "ollapse" in line]
    return lines, read_metrics(folder / "metrics.jsonl")


KEYS = ("epochs=4", "optimizer={name: sgd, lr: 0.3, weight_decay: 0}", "batch_size=64")


def without_stop_gradient(self: SimSiam, batch: Batch) -> Output:
    """SimSiam's forward with the two detach() taken out."""
    h1, h2 = (self.backbone(x) for x in batch.views)
    z1, z2 = self.projector(h1), self.projector(h2)
    p1, p2 = self.predictor(z1), self.predictor(z2)
    loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
    return Output(loss, features=h1, embeddings=(z1, z2))


def test_simsiam_without_stop_gradient_is_noticed_within_an_epoch(tmp_path, monkeypatch):
    """arXiv 2011.10566, section 4.1: without it the output degenerates."""
    monkeypatch.setattr(SimSiam, "forward", without_stop_gradient)
    lines, records = train(tmp_path / "run", monkeypatch, *KEYS)
    ranks = {r["step"]: r["embedding_rank"] for r in records}
    began = next(step for step, rank in ranks.items() if rank < collapse.LEAST_RANK)
    (line,) = lines
    noticed = int(line.split(":")[0].removeprefix("Step "))
    assert noticed - began <= 22, "an epoch has 22 steps"
    assert all(word in line for word in ("nearly the same", "simsiam", "optimizer.lr"))


def test_simsiam_itself_is_left_alone(tmp_path, monkeypatch):
    lines, records = train(tmp_path / "run", monkeypatch, *KEYS)
    assert not lines
    assert min(r["embedding_rank"] for r in records) > 2 * collapse.LEAST_RANK
    wanted = {"feature_std", "feature_rank", "embedding_std", "embedding_rank"}
    assert all(wanted | {"uniformity", "alignment"} <= r.keys() for r in records)


@pytest.mark.parametrize(
    "bad",
    [
        {"embedding_std": 0.05, "embedding_rank": 9.0},
        {"embedding_std": 0.5, "embedding_rank": 1.4},
        {"feature_std": 0.01, "feature_rank": 9.0},
    ],
)
def test_it_is_said_once_and_only_if_it_lasts(bad):
    class Method:
        class config:
            name = "any"

        remedy = "change this"

    monitor = collapse.CollapseMonitor(Method)
    good = {key: 0.9 if "std" in key else 30.0 for key in bad}
    said = [monitor.verdict(x) for x in [bad, bad, good, bad, bad, bad, bad, good, bad, bad, bad]]
    assert [bool(x) for x in said] == [False] * 5 + [True] + [False] * 5
    assert "change this" in said[5]
