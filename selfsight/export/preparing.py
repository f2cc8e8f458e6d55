"""The Python code of a model card that prepares images as Selfsight does.

It is text, made of numbers alone, and is run as it stands before an export is said to be done.
"""

from selfsight.data.images import CENTER, SMALL
from selfsight.export.subject import Subject


def with_torch(subject: Subject) -> str:
    """The function `prepare` with torch alone: the same pixels as Selfsight's, at any size."""
    height, width = subject.size
    dtype = "" if subject.bits == 8 else ".astype(np.int32)"
    lines = [
        *_head(subject),
        f"    pixels = torch.from_numpy(pixels{dtype}).permute(2, 0, 1)",
        *_box(subject, "pixels.shape[1:]"),
        "    pixels = pixels[:, top : top + down, left : left + across]",
        f"    pixels = {_as_float(subject, 'pixels.float()', 'pixels')}",
        f"    size = ({height}, {width})",
        '    pixels = interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]',
        *(["    pixels = pixels if small else pixels.round()"] if subject.bits == 16 else []),
        f"    return (pixels.float() / {_white(subject)} - mean) / std",
    ]
    numbers = [f"{key} = torch.tensor({_column(subject, key)})" for key in ("mean", "std")]
    return "\n".join([*numbers, "", "", *lines])


def with_numpy(subject: Subject) -> str:
    """The same with NumPy and Pillow, whose resizing may differ by a level in a few pixels."""
    height, width = subject.size
    lines = [
        *_head(subject),
        *_box(subject, "pixels.shape[:2]"),
        "    pixels = pixels[top : top + down, left : left + across]",
        f"    pixels = {_as_float(subject, 'pixels.astype(np.float32)', 'pixels')}",
        f"    size = ({width}, {height})  # width and height",
        "    planes = [Image.fromarray(plane) for plane in np.moveaxis(pixels, 2, 0).copy()]",
        "    planes = [plane.resize(size, Image.Resampling.BILINEAR) for plane in planes]",
        "    pixels = np.stack([np.asarray(plane, np.float32) for plane in planes])",
        *(["    pixels = pixels if small else pixels.round()"] if subject.bits == 16 else []),
        f"    return (pixels / {_white(subject)} - mean) / std",
    ]
    numbers = [f"{key} = np.array({_column(subject, key)}, np.float32)" for key in ("mean", "std")]
    return "\n".join([*numbers, "", "", *lines])


def with_torchvision(subject: Subject) -> str:
    """The same with torchvision's transforms."""
    height, width = subject.size
    mean, std = (_numbers(subject, key) for key in ("mean", "std"))
    steps = [
        f"        v2.Resize(({height}, {width}), antialias=True),",
        "        v2.ToDtype(torch.float32, scale=True),",
        f"        v2.Normalize({mean}, {std}),",
    ]
    lines = [
        _signature(subject),
        f'    image = v2.functional.to_image(image.convert("{_mode(subject)}"))',
        *_box(subject, "image.shape[-2:]"),
        "    if small:",
        "        image = v2.functional.to_dtype(image, torch.float32, scale=True)",
        "    return finish(v2.functional.crop(image, top, left, down, across))",
    ]
    return "\n".join(["finish = v2.Compose(", "    [", *steps, "    ]", ")", "", "", *lines])


def _signature(subject: Subject) -> str:
    height, width = subject.size
    given = "image" if subject.takes_pil else "pixels"
    taken = "a PIL image" if subject.takes_pil else f"(H, W, {subject.channels}) {_dtype(subject)}"
    return f"def prepare({given}):  # {taken} -> ({subject.channels}, {height}, {width})"


def _head(subject: Subject) -> list[str]:
    """The signature, and lines that make an array (H, W, C)."""
    lines = [_signature(subject)]
    if subject.takes_pil:
        gray = "[..., None]" if subject.channels == 1 else ""
        return [*lines, f'    pixels = np.array(image.convert("{_mode(subject)}")){gray}']
    if subject.bits == 16 and subject.range is not None:
        low, high = subject.range
        step = (high - low + 1) / 2**16
        lines.append(f"    pixels = np.clip((pixels - {low!r}) // {step!r}, 0, 65535)")
    return lines


def _box(subject: Subject, shape: str) -> list[str]:
    """Lines that find the part of the image that an evaluation shows."""
    height, width = subject.size
    lines = [f"    height, width = {shape}", f"    small = max(height, width) <= {SMALL}"]
    if subject.resize == "squash":
        return [*lines, "    top, left, down, across = 0, 0, height, width"]
    lines.append(f"    part = 1 if small else {CENTER}  # all of a small image is shown")
    if height == width:
        lines.append("    down = across = max(1, round(part * min(height, width)))")
    else:
        lines += [
            f"    scale = part * min(height / {height}, width / {width})",
            f"    down, across = max(1, round({height} * scale)), max(1, round({width} * scale))",
        ]
    return [*lines, "    top, left = (height - down) // 2, (width - across) // 2"]


def _as_float(subject: Subject, converted: str, kept: str) -> str:
    """Small images are resized as floats, photographs in integers, if they have 8 bits."""
    return converted if subject.bits == 16 else f"{converted} if small else {kept}"


def _numbers(subject: Subject, key: str) -> str:
    return repr([float(value) for value in subject.description[key]])


def _column(subject: Subject, key: str) -> str:
    """The same as (C, 1, 1)."""
    return repr([[[float(value)]] for value in subject.description[key]])


def _mode(subject: Subject) -> str:
    return "L" if subject.channels == 1 else "RGB"


def _dtype(subject: Subject) -> str:
    return "uint8" if subject.bits == 8 else "uint16"


def _white(subject: Subject) -> int:
    return 2**subject.bits - 1
