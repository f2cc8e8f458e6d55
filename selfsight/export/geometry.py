"""Sizes of images for which another library's resizing changes nothing.

Selfsight cuts out the central part of an image and resizes it; timm and transformers resize the
image first and cut afterwards. Where the part has the size of the encoder's input already, nothing
is resized, and all of them show the same pixels.
"""

import math

from selfsight.data.images import CENTER, SMALL
from selfsight.encoders.shown import Resize, shown_box
from selfsight.export.subject import Subject

Size = tuple[int, int]  # height and width in pixels

LONGER = (0, 2, 10, 34)  # pixels by which a photograph's longer side exceeds the least one


def crop_fraction(subject: Subject) -> float:
    """timm's crop_pct: side of the part that is shown / shorter side of the resized image.

    0.875 for photographs, or a number near it for which an image of the right size is not resized;
    1 where all of the image is shown.
    """
    if subject.pictures == "small" or subject.resize == "squash":
        return 1.0
    near = [CENTER]
    for side in subject.size:  # a quarter more, so that rounding down gives the number
        near += [side / (round(side / CENTER) + more + 0.25) for more in (0, -1, 1, 2)]
    return next((fraction for fraction in near if _photographs(subject, fraction)), CENTER)


def exact_sizes(subject: Subject) -> list[Size]:
    """Sizes of images of which no library resizes anything; [] if there are none."""
    if subject.pictures == "small" or subject.resize == "squash":
        return [subject.size] if _is_exact(subject.size, subject.size, subject.resize) else []
    return _photographs(subject, crop_fraction(subject))


def _photographs(subject: Subject, fraction: float) -> list[Size]:
    """The sizes for this crop_pct."""
    height, width = (math.floor(side / fraction) for side in subject.size)
    found = {(height, width)}
    if height == width:
        found |= {(height, width + more) for more in LONGER}
        found |= {(height + more, width) for more in LONGER}
        found |= {(height, 2 * width - width % 2), (height, SMALL + 1), (height, SMALL + 2)}
    return [
        size
        for size in sorted(found)
        if max(size) > SMALL
        and min(size) >= min(height, width)
        and _is_exact(size, subject.size, "crop")
    ]


def _is_exact(image: Size, size: Size, resize: Resize) -> bool:
    """Whether the part that an evaluation shows has this size, and lies where torchvision's
    CenterCrop cuts it, which rounds halves to even numbers."""
    top, left = (round((a - b) / 2) for a, b in zip(image, size, strict=True))
    return shown_box(*image, size, resize) == [top, left, *size]


def other_sizes(subject: Subject) -> list[Size]:
    """Sizes of images that must be resized: of photographs, or of small images."""
    if subject.pictures == "small":
        return [(28, 28), (32, 40), (48, 48), (64, 50), (72, 72), (90, 96), (20, 20), (96, 96)]
    sides = [(375, 500), (500, 333), (256, 256), (120, 97), (301, 640), (480, 360), (224, 224)]
    return [*sides, (183, 275)]
