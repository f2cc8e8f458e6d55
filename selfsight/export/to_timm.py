"""A folder that timm and transformers read: config.json, model.safetensors and
preprocessor_config.json.

transformers reads timm's config.json by its class TimmWrapperModel, and prepares images with timm's
transforms.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from selfsight.export import preparing
from selfsight.export.geometry import crop_fraction
from selfsight.export.subject import Subject
from selfsight.export.target import Target
from selfsight.files import write_json

# of a timm model's pretrained_cfg, what holds for other weights of it, too
_KEPT = ("fixed_input_size", "first_conv", "classifier")


def refusal(subject: Subject) -> str:
    """Why no arguments of timm build this encoder; "" if some do."""
    import timm

    described = subject.description["backbone"]
    if not timm.is_model(described["name"]):
        return "the encoder is code of your own, which timm does not have"
    if subject.description.get("head_dim"):
        return "the features are those of the head that SimCLR v2 keeps, for which timm has no part"
    if described["small_images"]:
        return "no argument of timm builds the small stem of backbone.small_images=true"
    if hasattr(subject.encoder.backbone, "image_channels"):
        return "no argument of timm takes the mean of three channels (in_chans=1 of RGB images)"
    if described["norm_eps"] is not None and _norm_eps(subject) != {described["norm_eps"]}:
        return f"no argument of timm sets backbone.norm_eps={described['norm_eps']}"
    return ""


def _norm_eps(subject: Subject) -> set[float]:
    """The epsilons of the layer norms that timm's model has by itself."""
    import timm
    import torch

    arguments = subject.encoder.backbone.timm_arguments
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = timm.create_model(subject.model, num_classes=0, **arguments)
    return {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}


def config(subject: Subject) -> dict[str, Any]:
    """The content of config.json."""
    backbone, (height, width) = subject.encoder.backbone, subject.size
    by_default = {key: backbone.pretrained_cfg.get(key) for key in _KEPT}
    pretrained = {
        "custom_load": False,
        "input_size": [subject.channels, height, width],
        "interpolation": "bilinear",
        "crop_pct": crop_fraction(subject),
        "crop_mode": "squash" if subject.resize == "squash" else "center",
        "mean": subject.description["mean"],
        "std": subject.description["std"],
        "num_classes": 0,
        **{key: value for key, value in by_default.items() if value is not None},
    }
    return {
        "architecture": subject.description["backbone"]["name"],
        "num_classes": 0,
        "num_features": subject.encoder.num_features,
        "model_args": backbone.timm_arguments,
        "pretrained_cfg": pretrained,
    }


def write(subject: Subject, folder: Path) -> None:
    """Raises: OSError."""
    about = config(subject)
    write_json(folder / "config.json", about)
    # the first file that transformers reads on the hub; it then reads config.json, as of a folder
    processor = {"image_processor_type": "TimmWrapperImageProcessor"}
    processor |= {key: about[key] for key in ("architecture", "pretrained_cfg")}
    write_json(folder / "preprocessor_config.json", processor)
    state = subject.encoder.backbone.state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    # as bytes: on a full disk safetensors raises an error of its own
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))


_TIMM = """\
import timm
import torch
{imports}
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
{prepare}


def features(pixels):  # (B, C, h, w) -> (B, D)
    with torch.inference_mode():
        return model(pixels)
"""
_TIMM_PREPARE = """\
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))


def prepare(image):  # a PIL image -> (C, h, w)
    return transform(image.convert("{mode}"))
"""
_TRANSFORMERS = """\
import torch
{imports}from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(folder).eval()
{prepare}


def features(pixels):  # (B, C, h, w) -> (B, D)
    with torch.inference_mode():
        return model(pixels).pooler_output
"""
_TRANSFORMERS_PREPARE = """\
processor = AutoImageProcessor.from_pretrained(folder)


def prepare(image):  # a PIL image -> (C, h, w)
    return processor(image.convert("{mode}"))["pixel_values"][0]
"""


_IMPORTS = "import numpy as np\nfrom torch.nn.functional import interpolate\n"


def _exact(subject: Subject) -> str:
    return f"{_IMPORTS}\n{preparing.with_torch(subject)}\n" if subject.takes_pil else ""


def _timm_code(subject: Subject) -> str:
    return _filled(subject, _TIMM, _TIMM_PREPARE)


def _transformers_code(subject: Subject) -> str:
    return _filled(subject, _TRANSFORMERS, _TRANSFORMERS_PREPARE)


def _filled(subject: Subject, whole: str, prepare: str) -> str:
    """The code with the library's own transform, if that reads such images."""
    if subject.takes_pil:
        text = prepare.format(mode="L" if subject.channels == 1 else "RGB").rstrip()
        return whole.format(imports="", prepare=text)
    return whole.format(imports=_IMPORTS, prepare=preparing.with_torch(subject))


def _takes_pil(subject: Subject) -> bool:
    return subject.takes_pil


TIMM = Target(
    "timm", "timm", "timm", ("timm",), "", "timm", refusal, write, _timm_code, _takes_pil, _exact
)
TRANSFORMERS = Target(
    "transformers",
    "transformers",
    "timm",
    ("timm", "transformers"),
    "transformers",
    "timm",
    refusal,
    write,
    _transformers_code,
    _takes_pil,
    _exact,
)
