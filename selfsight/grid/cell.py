"""One cell of a grid, in a process of its own: `python -m selfsight.grid.cell FOLDER`."""

import copy
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from selfsight import config as layers
from selfsight import mapped, own
from selfsight.errors import UserError, described
from selfsight.evaluate import protocols as measure
from selfsight.evaluate.protocols.results import Result
from selfsight.files import Damaged, are_numbers, read_json, read_or_set_aside, sealed, write_json
from selfsight.grid.plan import UNTRAINED, Job, Protocol
from selfsight.logging.log import read_metrics, say
from selfsight.pretraining import job as run
from selfsight.pretraining.config import compose
from selfsight.processes import Stopped, end_with_parent, stopped_by_signals
from selfsight.train.cost import is_cost
from selfsight.train.signals import Interrupted

MEASURES = {
    "knn": measure.knn,
    "linear": measure.linear,
    "linear-augmented": measure.linear_augmented,
    "finetune": measure.finetune,
}
# Results of a cell that has none.
NOTHING: dict[str, Any] = {"done": {}, "online": None, "cost": {}, "test_images": None}


def work(folder: Path) -> None:
    """Pretrain and evaluate as job.json says; what outcome.json lists as done is not repeated.

    outcome.json grows with each protocol: {"done": {protocol: {evaluated: metrics}}, ...}.
    """
    asked = read_json(folder / "job.json")
    try:
        job, device, trees = Job(**asked["job"]), asked["device"], list(asked["protocols"])
    except (KeyError, TypeError) as error:
        raise Damaged(folder / "job.json", f"not a description of a cell ({error})") from None
    home = str(folder / "run")
    config = compose(job.what, [*job.keys, f"device={device}"], run=home).config
    outcome = read_outcome(folder)
    if job.method == UNTRAINED:
        run.untrained(config)
    else:
        run.pretrain(config, quiet=True)
        outcome["cost"] = _cost(folder / "run")
        outcome["online"] = _online(folder / "run")
    write_json(folder / "outcome.json", sealed(outcome))
    for tree in trees:
        protocol = layers.validate(Protocol, tree)
        key = json.dumps(tree, sort_keys=True)
        if key not in outcome["done"]:
            results = _measure(protocol, home, device, job)
            outcome["done"][key] = {r.evaluated: r.metrics for r in results}
            outcome["test_images"] = results[0].data["test"]
            write_json(folder / "outcome.json", sealed(outcome))


def read_outcome(folder: Path) -> dict[str, Any]:
    """Read outcome.json; if it is damaged, start an empty one: all evaluations are repeated."""
    return read_or_set_aside(folder / "outcome.json", is_outcome, say) or copy.deepcopy(NOTHING)


def is_outcome(value: dict[str, Any]) -> bool:
    """Whether an object has all that the results of a cell have."""
    done, cost = value.get("done"), value.get("cost")
    if not isinstance(done, dict) or not isinstance(cost, dict) or (cost and not is_cost(cost)):
        return False
    metrics = [m for by in done.values() for m in (by.values() if isinstance(by, dict) else [0])]
    numbers = {key: value.get(key) for key in ("online", "test_images")}
    return all(map(are_numbers, [numbers, *metrics]))


def _cost(folder: Path) -> dict[str, Any]:
    return read_or_set_aside(folder / "cost.json", is_cost, say) or {}


def _online(folder: Path) -> float | None:
    """The online probe's mean accuracy over the lines of metrics.jsonl from the last epoch."""
    records = [
        r for r in read_metrics(folder / "metrics.jsonl") if {"probe_top1", "epoch"} <= r.keys()
    ]
    late = [r["probe_top1"] for r in records if r["epoch"] > records[-1]["epoch"] - 1]
    late = [value for value in late if value is not None]
    return fmean(late) if late else None


def _measure(protocol: Protocol, home: str, device: str, job: Job) -> list[Result]:
    """The encoder alone: the untrained one has cells of its own, which also measure the pixels."""
    keys = [*protocol.arguments(), f"device={device}", "untrained=false"]
    keys.append(f"start={json.dumps(job.start)}")
    if protocol.kind in ("knn", "linear"):
        pixels = job.method == UNTRAINED
        return MEASURES[protocol.kind](home, [*keys, f"pixels={json.dumps(pixels)}"])
    name = protocol.protocol or protocol.kind
    return MEASURES[protocol.kind](home, keys, protocol=name, quiet=True)


def main() -> None:
    """Exit codes as of a command; the last line in stderr says why a cell failed. Arguments after
    the folder name the code of the user's own that may run."""
    end_with_parent()
    mapped.end_with_a_line(lambda line: print(f"selfsight: {line}", file=sys.stderr, flush=True))
    try:
        with stopped_by_signals(lambda number: None), own.named_in(sys.argv[2:]):
            work(Path(sys.argv[1]))
    except UserError as error:
        print(f"selfsight: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk
        print(f"selfsight: {described(error)}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except Stopped as stop:
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    main()
