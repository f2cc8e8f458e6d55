"""The images of a pretraining, with numbers for all that its keys say to measure in them."""

from pathlib import Path
from typing import Any

import torch

from selfsight import agreement
from selfsight.data.bad import BadImages
from selfsight.data.by_machine import by_machine
from selfsight.data.config import DataConfig
from selfsight.data.identity import fingerprint
from selfsight.data.images import Images
from selfsight.data.measure import recorded, settled
from selfsight.data.source import Source, cache_beside, decoding
from selfsight.data.sources.open import open_source
from selfsight.encoders.artifact import DESCRIPTION
from selfsight.encoders.description import read_description
from selfsight.pretraining.config import RunConfig
from selfsight.train.folder import has_trained


def training_images(
    config: RunConfig, device: torch.device, bad_images: Path | None = None
) -> Images:
    """The images of the training split.

    Args:
        bad_images: the file that lists broken images; without it, a broken image is an error.
    """
    cache, data = cache_beside(config.run), agreement.by_first(lambda: _recorded(config))
    source = by_machine(lambda: open_source(data, "train", cache), _facts)
    data = agreement.by_first(lambda: settled(data, source))
    bad = bad_images and BadImages(bad_images, len(source), data.max_bad)
    return Images(source, data, device, bad)


def _recorded(config: RunConfig) -> DataConfig:
    """The keys of the data with the numbers that a run has measured before; an evaluation and the
    rest of its training use the same."""
    folder = Path(config.run or "")
    if config.run is None or not has_trained(folder) or not (folder / DESCRIPTION).is_file():
        return config.data
    return recorded(config.data, read_description(folder / DESCRIPTION)["data"])


def _facts(source: Source) -> dict[str, Any]:
    """What must not differ between the processes of a run."""
    return {**fingerprint(source), "data.range": decoding(source).range}
