"""The model card of an export, README.md: what the encoder is, how it is loaded, and what was
measured. Every statement has its number; what was not measured is said to be so."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selfsight import __version__, own
from selfsight.data.images import CENTER, SMALL
from selfsight.errors import printable
from selfsight.export import geometry
from selfsight.export.measured import results
from selfsight.export.subject import Subject
from selfsight.export.target import Target
from selfsight.export.verify import TOLERANCE, Differences

FILE = "README.md"
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~$!])")


def plain(text: object) -> str:
    r"""A text as Markdown that shows it, in one line.

    >>> plain("a_b <i>|x|\n[y](z)")
    'a\\_b &lt;i&gt;\\|x\\| \\[y\\](z)'
    """
    line = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", line)


def _line(text: object) -> str:
    return printable(" ".join(str(text).split()))


def number(difference: float | None) -> str:
    """A difference of features as a text.

    >>> number(0.00012345), number(0.0), number(None)
    ('1.2e-04', '0', '-')
    """
    if difference is None:
        return "-"
    return f"{difference:.1e}" if difference else "0"


def without_folders(name: str) -> str:
    """A name that a configuration holds, without paths of this machine.

    >>> without_folders("/home/me/net.py:build"), without_folders("torchvision:CIFAR10")
    ('net.py:build', 'torchvision:CIFAR10')
    """
    is_path = re.search(r"(^|:)([/\\.~]|[A-Za-z]:[/\\])", name) or own.is_code(name)
    return re.split(r"[/\\]", name)[-1] if is_path else name


def of_source(data: Mapping[str, Any]) -> str:
    """What a card calls the images of these keys `data.*`, without paths of this machine.

    >>> of_source({"source": "auto", "path": "/home/me/photos"}), of_source({"source": "digits"})
    ('own files', 'digits')
    """
    source = str(data.get("source", "images that are not known"))
    if source == "auto":
        return "own files" if data.get("path") else "digits"
    return without_folders(source)


def card(
    subject: Subject,
    verified: Mapping[Target, Differences],
    license: str | None = None,
    datasets: Sequence[str] = (),
    repository: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        verified: the libraries that the folder was loaded with, and what they differ by.
        license, datasets: identifiers of the Hugging Face hub, for the head of the card.
        repository: ORG/NAME on the hub, if it is pushed there.
    """
    method = without_folders(subject.description["method"]["name"])
    first = next(iter(verified))
    head = {
        "library_name": first.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["selfsight", "image-feature-extraction", _line(method)],
        **({"license": _line(license)} if license else {}),
        **({"datasets": [_line(name) for name in datasets]} if datasets else {}),
    }
    height, width = subject.size
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10_000)}---",
        f"# {plain(subject.model)}, pretrained by {plain(method)}",
        f"An image encoder: pixels (B, {subject.channels}, {height}, {width}) become features "
        f"(B, {subject.encoder.num_features}). Exported by Selfsight {__version__}."
        + _head_kept(subject),
        "## How to load it",
        *(_loading(subject, target, repository) for target in verified),
        "## Images",
        _images(subject),
        "## Agreement with the pretrained encoder",
        _agreement(subject, verified),
        "## Results",
        results(subject, plain, of_source),
        "## Pretraining",
        _pretraining(subject, method),
    ]
    return "\n\n".join(parts) + "\n"


def _head_kept(subject: Subject) -> str:
    width = subject.description.get("head_dim")
    return f" They are those of the projection of {width} that SimCLR v2 keeps." if width else ""


def _loading(subject: Subject, target: Target, repository: str | None) -> str:
    text = f"With {target.title}:\n\n```python\n"
    text += f'folder = "."  # of this file\n\n{target.code(subject)}```'
    text += f"\n\n{_usage(subject, target)}"
    if repository and target.layout == "timm":
        named = "hf-hub:" if target.name == "timm" else ""
        text += f" From the hub, the name is `{named}{repository}`."
    better = target.exact(subject)
    if better:
        text += (
            f"\n\nThis transform {_difference(subject)}. For images that must be resized, the "
            "following `prepare` in place of the one above gives the features of those "
            "evaluations:\n\n"
            f"```python\n{better}```"
        )
    return text


def _difference(subject: Subject) -> str:
    """What a library's transform does otherwise."""
    if subject.resize == "squash":
        return "resizes with Pillow, whose pixels differ a little from Selfsight's evaluations"
    return (
        "resizes an image first and cuts it afterwards; Selfsight's evaluations do it the other "
        "way round"
    )


def _usage(subject: Subject, target: Target) -> str:
    """Code that gives the features of one image."""
    stack = "np.stack" if target.name == "onnx" else "torch.stack"
    imports = "from PIL import Image, ImageOps\n\n"
    given = 'ImageOps.exif_transpose(Image.open("photo.jpg"))'
    if not subject.takes_pil:
        shape, kind = (256, 256, subject.channels), "uint8" if subject.bits == 8 else "uint16"
        imports, given = "", f"np.zeros({shape}, np.{kind})"
    return (
        f"```python\n{imports}image = {given}\nfeatures({stack}([prepare(image)]))  # (1, D)\n```"
    )


def _images(subject: Subject) -> str:
    bits = f"of {subject.bits} bits"
    kind = {1: "gray images", 3: "RGB images"}.get(
        subject.channels, f"images of {subject.channels} channels"
    )
    lines = [f"The encoder takes {kind} {bits}, upright, without transparency."]
    if subject.takes_pil:
        lines.append(
            "Selfsight turns a photograph by its EXIF orientation and puts a transparent image on "
            "white; `prepare` does neither."
        )
    if subject.resize == "squash":
        lines.append("The whole image is resized, whatever its shape.")
    else:
        lines.append(
            f"Of an image with a side of more than {SMALL} pixels the central part is shown, "
            f"{CENTER} of what fits the shape; of a smaller one all that fits."
        )
    lines.append("It is resized bilinearly with antialiasing.")
    mean, std = (", ".join(f"{v:g}" for v in subject.description[k]) for k in ("mean", "std"))
    lines.append(
        f"Pixels are divided by {2**subject.bits - 1} and normalised with mean ({mean}) and "
        f"standard deviation ({std})."
    )
    if subject.range is not None:
        low, high = subject.range
        lines.append(
            f"Images with more than 8 bits were read with the values {low:g} to {high:g} as the "
            f"least and the most."
        )
    return " ".join(lines)


def _agreement(subject: Subject, verified: Mapping[Target, Differences]) -> str:
    rows = [
        "| loaded with | network, same pixels | images of the exact size | other sizes | "
        "other sizes, resized as in the evaluation |",
        "|---|---|---|---|---|",
    ]
    for target, found in verified.items():
        numbers = (found.network, found.exact_size, found.other_sizes, found.exact_code)
        shown = " | ".join(number(value) for value in numbers)
        rows.append(f"| {target.title} | {shown} |")
    sizes = ", ".join(f"{w} x {h}" for h, w in geometry.exact_sizes(subject)[:3]) or "none"
    return (
        f"Largest difference of a feature from the encoder's own, divided by the root mean square "
        f"of its features, over {next(iter(verified.values())).images} drawn images. Up to "
        f"{TOLERANCE:.0e} counts as equal. Images of the exact size need no resizing (such as "
        f"{sizes} pixels).\n\n" + "\n".join(rows)
    )


def _pretraining(subject: Subject, method: str) -> str:
    described = subject.description
    trained, data = described.get("pretrained_on") or {}, described["data"]
    lines = [f"- method: {plain(method)}; seed {described['seed']}"]
    lines.append(f"- images: {plain(of_source(data))}")
    counts = [f"{trained[key]:,} {key}" for key in ("images", "steps") if trained.get(key)]
    lines += [f"- extent: {', '.join(counts)}"] if counts else []
    cost = subject.cost
    if isinstance(cost.get("seconds"), (int, float)):
        where = f" on {plain(cost['device'])}" if cost.get("device") else ""
        lines.append(f"- cost: {cost['seconds']:,.0f} seconds{where}")
    for key, what in (("weights_sha256", "started from weights"), ("teacher_sha256", "teacher")):
        if trained.get(key):
            lines.append(f"- {what} with SHA-256 `{plain(trained[key])}`")
    if "weights_sha256" not in trained and not own.is_code(described["backbone"]["name"]):
        lines.append("- started from random weights, drawn from the seed")
    lines.append(f"- SHA-256 of the encoder's weights: `{subject.sha256}`")
    return "\n".join(lines)


def write(folder: Path, text: str) -> None:
    """Raises: OSError."""
    (folder / FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
