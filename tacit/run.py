"""Whole jobs as typed functions; the command line only calls them."""

import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tacit import config as layers
from tacit import distributed, randomness
from tacit.backbones import build_backbone
from tacit.data.images import Images
from tacit.data.loader import ViewLoader
from tacit.data.sources import DataConfig, open_source, with_source
from tacit.errors import UserError
from tacit.evaluate.encoder import Encoder, load_encoder, save_encoder
from tacit.evaluate.features import extract, raw_pixels, weights_hash
from tacit.evaluate.knn import knn_accuracy
from tacit.evaluate.linear import linear_probe
from tacit.methods import METHODS, Method
from tacit.run_config import RunConfig, read_run_config, to_yaml
from tacit.train.engine import fit
from tacit.train.files import write_atomically, write_json, write_text
from tacit.train.log import console
from tacit.train.optim import scaled_lr
from tacit.train.precision import pick_device, pick_precision
from tacit.train.probe import OnlineProbe
from tacit.train.session import Check
from tacit.views.sheet import contact_sheet

__all__ = ["Evaluation", "Result", "draw_views", "knn", "linear", "load_encoder", "pretrain"]

PACKAGES = ("tacit", "torch", "torchvision", "timm", "numpy", "scikit-learn")
VERSION = 1  # of the protocols; a change that moves numbers raises it


# Pretraining --------------------------------------------------------------------------------------


def pretrain(config: RunConfig, quiet: bool = False) -> Path:
    """Pretrain as configured, from where an earlier call was stopped; returns the run's folder.

    Raises: UserError for data or options that do not fit, or for a folder that holds another
    configuration; train.session.Interrupted after SIGTERM or Ctrl-C.
    """
    if config.run is None:
        raise UserError("run=...: name a folder for the run")
    folder = Path(config.run)
    device = distributed.setup(pick_device(config.device))
    try:
        images = training_images(config, device)
        loader = make_loader(config, images)
        method = build_method(config)
        if distributed.rank() == 0:
            claim(folder, config)
        distributed.barrier()
        if not quiet and distributed.rank() == 0:
            _announce(config, images, device)
        probe = None
        if config.evaluate.probe and images.classes is not None:
            probe = OnlineProbe(method.backbone.num_features, len(images.classes))
        seconds = fit(
            method,
            loader,
            config,
            folder,
            device,
            probe=probe,
            check=_knn_check(config, images, device),
            quiet=quiet,
        )
        if distributed.rank() == 0:
            description = describe(config, method, images, seconds)
            save_encoder(folder, method.backbone, description)
        distributed.barrier()
        return folder
    finally:
        distributed.teardown()


def build_method(config: RunConfig) -> Method:
    """The method around its encoder, all weights a function of the seed."""
    backbone = build_backbone(config.backbone, image_size(config), config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(randomness.WEIGHTS, config.seed, 1) >> 1)
        return METHODS[config.method.name](backbone, config.method)


def draw_views(config: RunConfig, output: Path, rows: int, epochs: int) -> None:
    """Write a contact sheet of the first images of epoch 0 and their views, as a PNG file."""
    images = training_images(config, torch.device("cpu"))
    loader = make_loader(config.model_copy(update={"batch_size": min(rows, len(images))}), images)
    sheet = contact_sheet(loader, config.data.mean, config.data.std, rows, epochs)
    write_atomically(output, lambda path: sheet.save(path, "PNG"))


def training_images(config: RunConfig, device: torch.device) -> Images:
    return Images(open_source(config.data, "train"), config.data, device)


def make_loader(config: RunConfig, images: Images) -> ViewLoader:
    return ViewLoader(
        images,
        config.views,
        batch_size=config.batch_size,
        seed=config.seed,
        mean=config.data.mean,
        std=config.data.std,
        parts=config.accumulate,
    )


def image_size(config: RunConfig) -> int:
    """Side in pixels that evaluation resizes to: that of the first, largest, views."""
    return config.views[0].size


def claim(folder: Path, config: RunConfig) -> None:
    """Take a folder for this configuration, or make sure that it is already this one's."""
    path = folder / "config.yaml"
    if path.is_file():
        before, now = read_run_config(folder).identity(), config.identity()
        lines = layers.differences(before, now)
        if lines:
            shown = "\n".join(f"  {line}" for line in lines)
            raise UserError(
                f"'{folder}' holds another configuration (there -> asked for):\n{shown}\n"
                f"Choose another folder with --run, or repeat the command that made it"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' exists and is not a run folder; choose another with --run")
    versions = " ".join(f"{name} {_version(name)}" for name in PACKAGES)
    head = f"# python {platform.python_version()} {versions}\n"
    revision = _git_revision()
    if revision:
        head += f"# git {revision}\n"
    write_text(path, head + to_yaml(config))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git_revision() -> str | None:
    """HEAD of the repository that the command runs in, marked where files differ from it."""
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip() or None


def _announce(config: RunConfig, images: Images, device: torch.device) -> None:
    classes = f"{len(images.classes)} classes" if images.classes else "no labels"
    lr = scaled_lr(config.optimizer, config.batch_size)
    console.print(
        f"{config.method.name} with {config.backbone.name} on {len(images):,} images ({classes}), "
        f"{device.type} {pick_precision(config.precision, device)}, "
        f"peak lr {lr:.4g} -> {config.run}",
        soft_wrap=True,
    )


def _knn_check(config: RunConfig, images: Images, device: torch.device) -> Check | None:
    """kNN within the training split: a fifth of its images ask the others. The test split is not
    touched.
    """
    if config.evaluate.every_epochs == 0 or images.labels is None:
        return None
    order = randomness.permutation(len(images), randomness.SPLIT, config.seed)
    order = order[: config.evaluate.images]
    cut = max(1, len(order) // 5)
    labels = images.labels[torch.from_numpy(order)]
    amp = pick_precision(config.precision, device) == "bf16"

    def measure(backbone: nn.Module) -> dict[str, float]:
        data = config.data
        x = extract(backbone, images, image_size(config), data.mean, data.std, order, amp)
        accuracy = knn_accuracy(x[cut:], labels[cut:], x[:cut], labels[:cut], ks=(20,))
        return {"knn": accuracy[20]}

    return Check(config.evaluate.every_epochs, measure)


def describe(config: RunConfig, method: Method, images: Images, seconds: float) -> dict[str, Any]:
    """What encoder.safetensors says of itself: only what two equal runs share."""
    return {
        "format": 1,
        "method": config.method.model_dump(mode="json"),
        "backbone": config.backbone.model_dump(mode="json"),
        "num_features": method.backbone.num_features,
        "image_size": image_size(config),
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "seed": config.seed,
        "weights_sha256": weights_hash(method.backbone),
        "pretrained_on": {"images": len(images), "epochs": config.epochs},
        "tacit": _version("tacit"),
    }


# Evaluation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One record of results.json.

    Attributes:
        protocol: knn or linear; evaluated: encoder, untrained or pixels.
        metrics: name -> value, accuracies in [0, 1].
    """

    protocol: str
    version: int
    evaluated: str
    metrics: dict[str, float]
    seed: int
    cost: dict[str, float]
    weights_sha256: str | None
    data: dict[str, Any]


@dataclass
class Evaluation:
    """Train and test features of one thing that is evaluated."""

    name: str
    train: Tensor
    test: Tensor
    seconds: float
    weights_sha256: str | None


def knn(run: str | Path, overrides: list[str] | None = None) -> list[Result]:
    """kNN accuracy on the test split of the run's encoder, of an untrained one and of raw pixels.

    Protocol: cosine, k = 20 and 200, votes weighted with exp(cosine / 0.07) (arXiv 1805.01978).
    Args:
        run: a finished run's folder.
        overrides: 'data.key=value', to evaluate on other data.
    """

    def measure(x: Evaluation, y: Tensor, y_test: Tensor, seed: int) -> dict[str, float]:
        accuracy = knn_accuracy(x.train, y, x.test, y_test, ks=(20, 200), temperature=0.07)
        return {f"k{k}": value for k, value in accuracy.items()}

    return _evaluate("knn", Path(run), overrides, measure)


def linear(run: str | Path, overrides: list[str] | None = None) -> list[Result]:
    """Logistic regression on cached features; arguments and comparisons as in `knn`.

    Protocol: L2 penalty chosen on a fifth of the training split, the test split used once: top-1
        and top-5.
    Then with 1 and 5 labels per class: mean and standard deviation over 10 drawn subsets.
    """

    def measure(x: Evaluation, y: Tensor, y_test: Tensor, seed: int) -> dict[str, float]:
        arrays = [t.cpu().numpy() for t in (x.train, y, x.test, y_test)]
        result = linear_probe(*arrays, seed)
        metrics = {"top1": result.top1, "top5": result.top5, "chosen_c": result.strength}
        for shots, (mean, deviation) in result.few.items():
            metrics[f"shots{shots}"] = mean
            metrics[f"shots{shots}_std"] = deviation
        return metrics

    return _evaluate("linear", Path(run), overrides, measure)


def _evaluate(
    protocol: str,
    folder: Path,
    overrides: list[str] | None,
    measure: Callable[..., dict[str, float]],
) -> list[Result]:
    config = read_run_config(folder)
    encoder = load_encoder(folder)
    data = _data(config.data, overrides or [])
    device = pick_device(config.device)
    train, test = _labelled_splits(data, device)
    results = []
    for x in _compared(encoder, config, train, test, device):
        began = time.perf_counter()
        metrics = measure(x, train.labels, test.labels, config.seed)
        seconds = {"features_seconds": x.seconds, "seconds": time.perf_counter() - began}
        described = {**data.model_dump(mode="json"), "train": len(train), "test": len(test)}
        results.append(
            Result(
                protocol,
                VERSION,
                x.name,
                metrics,
                config.seed,
                {name: round(value, 3) for name, value in seconds.items()},
                x.weights_sha256,
                described,
            )
        )
    _store(folder, results)
    return results


def _data(data: DataConfig, overrides: list[str]) -> DataConfig:
    """The run's data with overridden keys; only data.* can change in an evaluation."""
    tree = {"data": data.model_dump()}
    for layer in layers.parse_overrides(overrides):
        other = next((key for key, _ in layers.flatten(layer) if not key.startswith("data.")), None)
        if other:
            raise UserError(f"'{other}' cannot change in an evaluation; only data.key=value can")
        tree = layers.merge(tree, {"data": with_source(layer.get("data", {}))})
    return layers.validate(DataConfig, tree["data"])


def _labelled_splits(data: DataConfig, device: torch.device) -> tuple[Images, Images]:
    where = f"data.path={data.path}" if data.path else f"data.source={data.source}"
    train, test = open_source(data, "train"), open_source(data, "test")
    if train is None or train.classes is None:
        raise UserError(
            f"{where}: has no labels to measure against; name a labelled set with data.path=..."
        )
    if test is None or test.classes is None:
        raise UserError(f"{where}: its test split has no labels")
    if train.classes != test.classes:
        raise UserError(
            f"{where}: train and test split have different classes "
            f"({len(train.classes)} and {len(test.classes)})"
        )
    return Images(train, data, device), Images(test, data, device)


def _compared(
    encoder: Encoder, config: RunConfig, train: Images, test: Images, device: torch.device
) -> list[Evaluation]:
    """The encoder, the same network as it was before its first step, and the raw pixels."""
    size, mean, std = (encoder.description[key] for key in ("image_size", "mean", "std"))
    amp = pick_precision(config.precision, device) == "bf16"
    evaluations = []
    untrained = build_backbone(config.backbone, size, config.seed)
    for name, network in (("encoder", encoder.backbone), ("untrained", untrained)):
        network.to(device=device, memory_format=torch.channels_last)
        began = time.perf_counter()
        a, b = (extract(network, images, size, mean, std, amp=amp) for images in (train, test))
        seconds = time.perf_counter() - began
        evaluations.append(Evaluation(name, a, b, seconds, weights_hash(network)))
    began = time.perf_counter()
    a, b = raw_pixels(train, size), raw_pixels(test, size)
    evaluations.append(Evaluation("pixels", a, b, time.perf_counter() - began, None))
    return evaluations


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's results.json."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _store(folder: Path, results: list[Result]) -> None:
    """Add records; one of the same protocol, seed, data and thing evaluated is replaced."""

    def what(record: dict[str, Any]) -> str:
        keys = ("protocol", "version", "evaluated", "seed", "data", "weights_sha256")
        return json.dumps([record[k] for k in keys], sort_keys=True)

    new = [vars(result) for result in results]
    replaced = {what(record) for record in new}
    kept = [record for record in read_results(folder) if what(record) not in replaced]
    write_json(folder / "results.json", kept + new)
