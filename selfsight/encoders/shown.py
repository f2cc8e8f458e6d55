"""Which part of an image an evaluation shows to an encoder."""

from collections.abc import Sequence
from typing import Literal

from selfsight.batch import sides
from selfsight.data.images import CENTER, SMALL, evaluation_box

# crop: the largest central part of the size's shape, of a photograph 0.875 of its sides;
# squash: the whole image, whatever its shape
Resize = Literal["crop", "squash"]


def shown_box(
    height: int, width: int, size: int | Sequence[int], resize: Resize = "crop"
) -> list[int]:
    """Top, left, height and width in pixels of the part that is resized to `size`.

    >>> shown_box(100, 300, 96), shown_box(100, 300, 96, "squash"), shown_box(80, 90, (32, 64))
    ([6, 106, 88, 88], [0, 0, 100, 300], [18, 0, 45, 90])
    """
    down, across = sides(size)
    if resize == "squash":
        return [0, 0, height, width]
    if down == across:
        return evaluation_box(height, width)
    fraction = 1.0 if max(height, width) <= SMALL else CENTER
    scale = fraction * min(height / down, width / across)
    h, w = (max(1, round(side * scale)) for side in (down, across))
    return [(height - h) // 2, (width - w) // 2, h, w]
