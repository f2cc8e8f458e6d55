"""A command that starts itself in several processes, where a file asks for several devices."""

import logging
import os
import sys

import typer


def share_out(count: int, device: str) -> None:
    """Go on only as one of so many processes: if this is the only one, start them as torchrun does,
    wait for them, and end with their exit code. With fewer GPUs, fewer share the same batch."""
    if count == 1 or "WORLD_SIZE" in os.environ:
        return
    import torch

    gpus = torch.cuda.device_count()
    if device != "cpu" and gpus < count:
        there = max(n for n in range(1, max(1, gpus) + 1) if count % n == 0)
        said = f"devices={count}: this machine has {gpus} GPUs"
        print(f"{said}; processes: {there}, with the same whole batch", file=sys.stderr)
        count = there
    if count > 1:
        raise typer.Exit(_launch(count))


def _launch(count: int) -> int:
    """The first exit code that is not 0, or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "tacit", *sys.argv[1:])
    except ChildFailedError as error:
        return next(iter(error.failures.values())).exitcode
    except SignalException as stop:
        return 128 + stop.sigval
    return 0
