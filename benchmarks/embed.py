"""What writing a table of features costs beside reading them: `python -m benchmarks.embed`.

`selfsight embed` against `evaluate.features.extract`, in turns, of photographs at 224 px and of
CIFAR-10 at 32 px through a ResNet-18 of random weights. Both sides open the weights and the images
and decode them; embed also hashes a sample of the images, writes the features to disk twice, and
checks them. What is compared is the ratio of each pair: 1.00 is as fast as an evaluation.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import timm
import torch
from safetensors.torch import save_file

from benchmarks.common import arguments, machine, start
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.embeddings.embed import Options, embed
from selfsight.evaluate.features import extract
from selfsight.evaluate.protocols.target import open_target
from selfsight.train.precision import pick_device, pick_precision

KEYS = {"photographs": [], "CIFAR-10": ["backbone.small_images=true"]}
SIZES = {"photographs": 224, "CIFAR-10": 32}


def compare(name: str, path: str, options: argparse.Namespace, folder: Path) -> str:
    """A row of the table."""
    keys = [*KEYS[name], "backbone.name=resnet18", f"image_size={SIZES[name]}"]
    keys += [f"device={options.device}", "seed=0"]
    weights = folder / "resnet18.safetensors"
    data = DataConfig(path=path, limit=options.images)
    device = pick_device(options.device)
    amp = pick_precision("auto", device) == "bf16"

    def embedded() -> int:
        asked = [*keys, f"data.path={path}", f"data.limit={options.images}"]
        return embed(weights, folder / "f.parquet", asked, Options("train"), quiet=True).rows

    def extracted() -> int:
        encoder = open_target(weights, keys, None).encoder.build()
        encoder.to(device=device, memory_format=torch.channels_last)
        images = Images(open_source(data, "train"), data, device, lazy=True)
        return len(extract(encoder, images, SIZES[name], data.normalization, amp=amp).cpu())

    count, pairs = embedded(), []
    if extracted() != count:  # and both have run once
        raise AssertionError("the two sides read different images")
    for _ in range(options.rounds):
        pair = []
        for work in (embedded, extracted):
            began = time.perf_counter()
            work()
            pair.append(time.perf_counter() - began)
        pairs.append(pair)
    rates = [median(count / s for s in side) for side in zip(*pairs, strict=True)]
    ratios = sorted(b / a for a, b in pairs)
    return (
        f"| {name}, {count:,} images | {rates[0]:.0f} images/s | {rates[1]:.0f} images/s "
        f"| {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n={len(ratios)}) |"
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    photographs = Path(parser.get_default("data")).parent / "imagenet-sample"
    parser.add_argument("--photographs", default=str(photographs), help="any images of many sizes")
    parser.add_argument("--images", type=int, default=10_000, help="at most so many of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    print(machine(), flush=True)
    print("\n| what | embed | extract | ratio |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        state = timm.create_model("resnet18", num_classes=0).state_dict()
        save_file(state, Path(folder, "resnet18.safetensors"))
        print(compare("photographs", options.photographs, options, Path(folder)), flush=True)
        state = timm.create_model("resnet18", num_classes=0).state_dict()
        state["conv1.weight"] = state["conv1.weight"][:, :, 2:5, 2:5].contiguous()
        save_file(state, Path(folder, "resnet18.safetensors"))
        print(compare("CIFAR-10", options.data, options, Path(folder)), flush=True)


if __name__ == "__main__":
    start(main)
