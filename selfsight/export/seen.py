"""Which images an encoder is for: large photographs, or small images of which all is shown."""

from typing import Literal

import numpy as np

from selfsight.batch import sides
from selfsight.data.decode import decode
from selfsight.data.images import SMALL
from selfsight.data.patience import Patience
from selfsight.data.source import cache_beside
from selfsight.data.sources.open import is_local, open_source
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import EvaluationTarget

Pictures = Literal["small", "photographs"]

LOOKED_AT = 5  # images of the run


def pictures_of(target: EvaluationTarget) -> tuple[Pictures, str]:
    """What the encoder's images are, and why that is thought, for the user.

    The images of the run decide, if they are on this machine; else the size that the encoder sees,
    which says less: an encoder may be trained on small views of photographs.
    """
    longest = _longest_sides(target)
    if longest:
        large = sum(side > SMALL for side in longest)
        why = f"{large} of {len(longest)} images of the run have a side of more than {SMALL} pixels"
        return ("photographs" if 2 * large > len(longest) else "small"), why
    size = max(sides(target.encoder.image_size))
    why = f"the encoder sees {size} pixels, and the images of the run were not found"
    return ("small" if size <= SMALL else "photographs"), why


def _longest_sides(target: EvaluationTarget) -> list[int]:
    """Pixels of the longer side of a few images that the run was trained on; [] if they cannot be
    read here: nothing is downloaded, and no code is run that an encoder's file names."""
    try:
        config = target.pretraining_data if target.home else None
        if config is None or not is_local(config):
            return []
        source = open_source(config, "train", cache_beside(target.home))
        rows = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int))
        return [max(decode(source, int(i), Patience(0)).shape[:2]) for i in rows]
    except (UserError, OSError, MemoryError):  # moved, changed or not readable: no fault here
        return []
