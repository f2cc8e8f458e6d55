"""cost.json: what a training took."""

from pathlib import Path
from typing import Any

import torch

from selfsight import distributed
from selfsight.files import are_numbers, read_or_set_aside, sealed, write_json
from selfsight.logging.log import say
from selfsight.train.precision import device_name, peak_memory


def is_cost(value: dict[str, Any]) -> bool:
    """Whether this is the content of a cost.json."""
    numbers = {key: item for key, item in value.items() if key != "device"}
    return {"seconds", "peak_memory_mib"} <= numbers.keys() and are_numbers(numbers)


def write_cost(
    folder: Path, seconds: float, images: int, device: torch.device, trained: bool
) -> None:
    """Write seconds, images per second, peak memory of this process, and its device.

    If the run was interrupted, seconds are the sum of its parts and memory is their maximum.
    Args:
        images: of all steps together.
        trained: whether this process did any step; if not, an earlier file stays.
    """
    path = folder / "cost.json"
    before = read_or_set_aside(path, is_cost, say) or {}
    if before and not trained:
        return
    cost = {
        "seconds": round(seconds, 3),
        "images_per_second": round(images / max(1e-9, seconds), 2),
        "peak_memory_mib": round(max(before.get("peak_memory_mib", 0), peak_memory(device)), 1),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }
    write_json(path, sealed(cost))
