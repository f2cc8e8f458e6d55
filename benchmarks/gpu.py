"""On a GPU: images/s of SimCLR with ResNet-18 at 32 px, and what the views take of a step.

Nothing here waits for the device inside a step; times are between CUDA events around whole windows.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import arguments, start
from tacit.data.images import Images
from tacit.data.sources import open_source
from tacit.run import build_method, make_loader
from tacit.run_config import compose
from tacit.train.engine import fit
from tacit.train.log import read_metrics
from tacit.train.precision import pick_precision
from tacit.views.make import Coordinates, make_views


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


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device; there is none here")
    device = torch.device("cuda")
    overrides = [f"data.path={options.data}", f"batch_size={options.batch}", "device=cuda"]
    overrides += [f"max_steps={options.steps}", "evaluate={every_epochs: 0, probe: false}"]
    overrides += ["checkpoint.every_epochs=0", "log_every=50"]
    config = compose("cifar10/simclr", overrides).config
    images = Images(open_source(config.data, "train"), config.data, device)
    loader = make_loader(config, images)
    index = torch.arange(options.batch, device=device)

    def views() -> None:
        pixels = images.tensor[index]
        at = Coordinates(0, 0, index)
        make_views(pixels, config.views, at, config.data.mean, config.data.std)

    with tempfile.TemporaryDirectory() as folder:
        fit(build_method(config), loader, config, Path(folder), device, quiet=True)
        rates = [r["images_per_second"] for r in read_metrics(Path(folder) / "metrics.jsonl")]
    rate = median(rates[2:] or rates)
    step, view = 1000 * options.batch / rate, milliseconds(views)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch}")
    print(
        f"training: {rate:.0f} images/s in {pick_precision('auto', device)}, {step:.1f} ms a step"
    )
    print(f"views: {view:.2f} ms of it, {view / step:.0%}")


if __name__ == "__main__":
    start(main)
