"""On a GPU: what views and training take; elsewhere what a view would launch on one.

Photographs: milliseconds for the views of a batch of 224 px from uint8 crops that are on the
device, kernels of a view, and a proof that nothing in it waits for the device. Small images:
images/s of SimCLR with ResNet-18 at 32 px, and what the views take of a step. Times are between
CUDA events around whole windows.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import MEAN, STD, arguments, start
from selfsight.batch import Normalization, SampleKey
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.logging.log import read_metrics
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import compose
from selfsight.train.engine import fit
from selfsight.train.loader import make_loader
from selfsight.train.precision import pick_precision
from selfsight.views.make import ViewSpec, finish_crops, make_views
from selfsight.views.recipe import ViewGroup, preset

GOAL = 5  # milliseconds for 512 views on an H200


def milliseconds(work: Callable[[], None], repeats: int = 20) -> float:
    """The median over windows of the time of one call, after a warm-up."""
    for _ in range(5):
        work()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / repeats)
    return median(times)


def photographs(batch: int) -> None:
    """Views of 224 px from crops that were cut while decoding."""
    (fields,) = preset("simclr")
    group = ViewGroup(**{**fields, "count": 1})
    shape = (batch, group.size, group.size, 3)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
    at = SampleKey(0, 0, torch.arange(batch, device="cuda"))
    flips = group.flip > at.uniform(0, 1).T

    def views(compile: bool = True) -> None:
        finish_crops([crops], flips, [group], at, Normalization(MEAN, STD), compile)

    for compiled, name in ((True, "compiled"), (False, "step by step")):
        took = milliseconds(lambda compiled=compiled: views(compiled))
        torch.cuda.set_sync_debug_mode("error")  # from here on waiting for the device raises
        views(compiled)
        torch.cuda.set_sync_debug_mode("default")
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            views(compiled)
            torch.cuda.synchronize()
        count = sum(e.device_type == torch.autograd.DeviceType.CUDA for e in seen.events())
        print(f"{batch} views of 224 px, {name}: {took:.2f} ms, {count} kernels, never waits")
    print(f"(the goal is {GOAL} ms for 512 on an H200)")


def small_images(path: str, batch: int, steps: int) -> None:
    """SimCLR on CIFAR-10."""
    device = torch.device("cuda")
    overrides = [f"data.path={path}", f"batch_size={batch}", "device=cuda"]
    overrides += [f"max_steps={steps}", "evaluate={every_epochs: 0, probe: false}"]
    overrides += ["checkpoint.every_epochs=0", "log_every=50"]
    config = compose("cifar10/simclr", overrides).config
    images = Images(open_source(config.data, "train"), config.data, device)
    loader = make_loader(config, images)
    index = torch.arange(batch, device=device)

    def views() -> None:
        pixels = images.tensor[index]
        at = SampleKey(0, 0, index)
        make_views(pixels, config.views, at, config.data.normalization)

    with tempfile.TemporaryDirectory() as folder:
        fit(build_method(config), loader, config, Path(folder), device, quiet=True)
        rates = [r["images_per_second"] for r in read_metrics(Path(folder) / "metrics.jsonl")]
    rate = median(rates[2:] or rates)
    step, view = 1000 * batch / rate, milliseconds(views)
    precision = pick_precision("auto", device)
    print(f"training at 32 px: {rate:.0f} images/s in {precision}, {step:.1f} ms a step")
    print(f"views: {view:.2f} ms of it, {view / step:.0%}")


def counts(batch: int) -> None:
    """What one view launches, counted on fake tensors and in the code for an H200."""
    from benchmarks.launches import kernels, launches

    cases = {"simclr": (0, False), "byol": (1, False), "finetune": (0, False), "digits": (0, True)}
    cases["simclr-small"] = (0, True)
    for name, (number, crop) in cases.items():
        group = ViewGroup(**preset(name)[number])
        kind = ViewSpec(group, Normalization(MEAN, STD))
        eager, compiled = (count(kind, batch, group.size, crop) for count in (launches, kernels))
        print(
            f"{name}, {'whole images' if crop else 'crops'}, {group.size} px: "
            f"{compiled['triton']} kernels and {compiled['bmm']} matrix products compiled, "
            f"{eager.operations.total()} operations step by step; copies {len(eager.copies)}"
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no GPU here: what one view would launch on one, torch {torch.__version__}")
        counts(options.batch)
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch}")
    photographs(options.batch)
    small_images(options.data, options.batch, options.steps)


if __name__ == "__main__":
    start(main)
