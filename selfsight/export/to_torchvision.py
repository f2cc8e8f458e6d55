"""A state dict for the models of torchvision: its ResNets, and Vision Transformers of its class."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsight.encoders.foreign.adapt import adapt
from selfsight.export import preparing
from selfsight.export.subject import Subject
from selfsight.export.target import Target
from selfsight.export.to_timm import refusal as no_timm

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
_EPS = 1e-6  # of the layer norms of torchvision's Vision Transformer


def refusal(subject: Subject) -> str:
    """Why torchvision has no such model; "" if it has."""
    reason = no_timm(subject)
    if reason:
        return reason.replace("timm", "torchvision")
    if subject.channels != 3:
        return f"torchvision's models take RGB images, and the encoder {subject.channels} channels"
    if subject.model in RESNETS:
        options = subject.encoder.backbone.timm_arguments
        named = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"torchvision's {subject.model} has no options like {named}" if named else ""
    return _no_vit(subject)


def _no_vit(subject: Subject) -> str:
    """Why this is no Vision Transformer of torchvision's class; "" if it is."""
    from timm.models.vision_transformer import VisionTransformer

    backbone, name = subject.encoder.backbone, subject.model
    if type(backbone) is not VisionTransformer:
        return f"torchvision gets ResNets and plain Vision Transformers here, and {name} is neither"
    if backbone.global_pool != "token":
        return (
            f"the features of torchvision's Vision Transformers are the class token, and those of "
            f"this encoder global_pool={backbone.global_pool}"
        )
    patch = backbone.patch_embed
    if subject.size[0] != subject.size[1] or patch.patch_size[0] != patch.patch_size[1]:
        return "torchvision's Vision Transformers take square images and patches"
    found = adapt(_vit(subject).state_dict(), "torchvision", backbone.state_dict())
    if found.problems:
        odd = next(iter([*found.missing, *found.shapes, *found.unknown]))
        return f"torchvision's Vision Transformers have no part like {odd} of {name}"
    return ""


def _vit_arguments(subject: Subject) -> dict[str, int]:
    backbone = subject.encoder.backbone
    return {
        "image_size": subject.size[0],
        "patch_size": backbone.patch_embed.patch_size[0],
        "num_layers": len(backbone.blocks),
        "num_heads": backbone.blocks[0].attn.num_heads,
        "hidden_dim": backbone.embed_dim,
        "mlp_dim": backbone.blocks[0].mlp.fc1.out_features,
    }


def _vit(subject: Subject) -> nn.Module:
    from torchvision.models import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        model = VisionTransformer(**_vit_arguments(subject))
    model.heads = nn.Identity()
    return model


def _resnet(subject: Subject) -> Any:
    import torchvision

    model = getattr(torchvision.models, subject.model)(weights=None)
    model.fc = nn.Identity()
    return model


def write(subject: Subject, folder: Path) -> None:
    """Raises: OSError."""
    own = subject.encoder.backbone.state_dict()
    with torch.random.fork_rng(devices=[]):
        theirs = (_resnet if subject.model in RESNETS else _vit)(subject).state_dict()
    keys = adapt(theirs, "torchvision", own).keys
    state = {theirs_name: own[name].detach().cpu() for name, theirs_name in keys.items()}
    buffer = io.BytesIO()  # on a full disk torch raises an error of its own
    torch.save({name: state[name] for name in theirs}, buffer)
    (folder / "model.pth").write_bytes(buffer.getbuffer())


_CODE = """\
{imports}import torch
import torchvision
{more}

{build}
model.load_state_dict(torch.load(f"{{folder}}/model.pth", weights_only=True))
model.eval()

{prepare}


def features(pixels):  # (B, 3, h, w) -> (B, D)
    with torch.inference_mode():
        return model(pixels)
"""


def _code(subject: Subject) -> str:
    imports = "" if subject.takes_pil else "import numpy as np\n"
    more = "from torch.nn.functional import interpolate"
    if subject.takes_pil:
        more = "from torchvision.transforms import v2"
    prepare = (preparing.with_torchvision if subject.takes_pil else preparing.with_torch)(subject)
    if subject.model in RESNETS:
        build = f"model = torchvision.models.{subject.model}(weights=None)\n"
        build += "model.fc = torch.nn.Identity()  # features, no classes"
    else:
        arguments = ", ".join(f"{key}={value}" for key, value in _vit_arguments(subject).items())
        build = f"model = torchvision.models.VisionTransformer(\n    {arguments}\n)\n"
        build += "model.heads = torch.nn.Identity()  # features, no classes"
    return _CODE.format(imports=imports, more=more, build=build, prepare=prepare)


TORCHVISION = Target(
    "torchvision",
    "torchvision",
    "torchvision",
    ("torchvision",),
    "",
    "torchvision",
    refusal,
    write,
    _code,
)
