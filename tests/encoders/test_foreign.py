"""Checkpoints of other libraries: features equal theirs, or a refusal that changes nothing."""

import argparse
import copy
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from selfsight.encoders.artifact import weights_hash
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.encoders.foreign import FORMATS, Loaded, load_foreign
from selfsight.encoders.foreign.beyond import Beyond
from selfsight.encoders.foreign.transformers import TRANSFORMERS
from selfsight.errors import UserError

SIZE = 16
COUNTER = "num_batches_tracked"


class SlimResNet(torchvision.models.ResNet):
    """torchvision's ResNet, an eighth as wide after the stem, with a classifier of 5 classes."""

    def __init__(self, layers: tuple[int, ...] = (1, 1, 1, 1)) -> None:
        super().__init__(BasicBlock, list(layers))
        self.fc = nn.Linear(64, 5)

    def _make_layer(self, block, planes, *rest, **options):
        return super()._make_layer(block, planes // 8, *rest, **options)


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every tensor, so that no two can be confused and no part is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            noise = torch.rand(value.shape, generator=generator)
            if not value.is_floating_point():
                value.copy_((noise * 1000).long())
            elif "running_var" in name or value.ndim == 1:
                value.copy_(noise + 0.5)
            else:
                value.copy_((noise - 0.5) / max(1, value[0].numel()) ** 0.5 * 2)
    return module.eval()


def resnet(seed: int = 0, layers: tuple[int, ...] = (1, 1, 1, 1)) -> nn.Module:
    return shake(SlimResNet(layers), seed)


def small_resnet(padding: int) -> nn.Module:
    """As for 32 pixels: a stem of 3x3 and no pooling."""
    model = SlimResNet()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    model.maxpool = nn.Identity()
    return shake(model)


def vit(seed: int = 0, classes: int = 0, size: int = SIZE, **options: Any) -> nn.Module:
    import timm

    shape = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": size}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **shape | options)
    return shake(model, seed)


def torchvision_vit() -> nn.Module:
    return shake(torchvision.models.VisionTransformer(SIZE, 4, 2, 2, 24, 96, num_classes=5))


def backbone(kind: str, **keys: Any) -> nn.Module:
    """A timm encoder with other weights, as the commands build it."""
    if kind == "vit":
        options = {"embed_dim": 24, "depth": 2, "num_heads": 2}
        config = BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, options=options)
        return build_backbone(config, SIZE, seed=7).eval()
    options = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
    if kind == "lightly-cifar":
        options["channels"] = [64, 128, 256, 512]
        keys = {"stem_relu": False, **keys}
    small = kind in ("lightly-cifar", "small")
    config = BackboneConfig(name="resnet18", small_images=small, options=options, **keys)
    return build_backbone(config, SIZE, seed=7).eval()


def without_head(encoder: nn.Module) -> nn.Module:
    """The same tensors, with features as output."""
    encoder = copy.copy(encoder)
    encoder._modules = dict(encoder._modules)
    for name in ("fc", "head", "heads"):
        if name in encoder._modules:
            encoder._modules[name] = nn.Identity()
    return encoder


def modules(**parts: Any) -> nn.Module:
    """A module with these members."""
    whole = nn.Module()
    for name, part in parts.items():
        if isinstance(part, Tensor):
            whole.register_buffer(name, part)
        else:
            whole.add_module(name, part)
    return whole


def ddp(module: nn.Module) -> nn.Module:
    return modules(module=module)  # the name that DataParallel and DDP give


def compiled(module: nn.Module) -> nn.Module:
    return modules(_orig_mod=module)  # the name that torch.compile gives; to call it takes 8 s


def mlp(*widths: int, last: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers[:-2], *([last] if last else []))


def optimizer(module: nn.Module) -> dict[str, Any]:
    """The state of an optimizer after a step: as many tensors as weights."""
    weights = [nn.Parameter(p.detach().clone()) for p in module.parameters()]
    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    sgd.step()
    return sgd.state_dict()


def lightning(module: nn.Module) -> dict[str, Any]:
    """What a Trainer saves."""
    return {
        "epoch": 3,
        "global_step": 90,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer(module)],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"batch_size_per_device": 8, "num_classes": 5},
    }


def count(module: nn.Module) -> int:
    return len(module.state_dict())


@dataclass
class Case:
    """A file, the module whose features are right, and what must be left out."""

    file: dict[str, Any]
    encoder: nn.Module
    left_out: dict[str, int] = field(default_factory=dict)
    kind: str = "resnet"
    name: str | None = None  # the format it is recognised as, where that is not the case's name

    def state(self) -> dict[str, Tensor]:
        """The state dict inside the file, to be changed by attacks."""
        for entry in ("teacher", "state_dict", "model"):
            if isinstance(self.file.get(entry), dict):
                return self.file[entry]
        return self.file

    def encoder_keys(self) -> list[str]:
        """Keys of tensors that are the encoder's: found by memory, not by name."""
        own = {value.data_ptr() for value in self.encoder.state_dict().values()}
        keys = [key for key, value in self.state().items() if value.data_ptr() in own]
        return [key for key in keys if not key.startswith("net.")]  # byol-pytorch has both


CASES: dict[str, Callable[[], Case]] = {}


def case(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[name] = cache(make)
        return make

    return register


@case("torchvision")
def _():
    model = resnet()
    return Case(model.state_dict(), without_head(model), {"classifier": 2})


@case("torchvision, training")
def _():
    model = resnet()
    file = {"model": model.state_dict(), "optimizer": optimizer(model), "epoch": 3}
    file |= {"args": argparse.Namespace(lr=0.1, data="x"), "lr_scheduler": {"last_epoch": 3}}
    left_out = {"classifier": 2, "optimizer": len(list(model.parameters()))}
    return Case(file, without_head(model), left_out, name="torchvision")


@case("torchvision, old")
def _():
    model = resnet()
    file = {k: v for k, v in model.state_dict().items() if not k.endswith(COUNTER)}
    return Case(file, without_head(model), {"classifier": 2}, name="torchvision")


@case("torchvision, ViT")
def _():
    model = torchvision_vit()
    file = model.state_dict()
    return Case(file, without_head(model), {"classifier": 2}, "vit", "torchvision")


@case("timm")
def _():
    model = vit(classes=5)
    return Case({"state_dict": model.state_dict()}, without_head(model), {"classifier": 2}, "vit")


@case("timm, no classifier, compiled, DDP")
def _():
    model = vit()
    return Case(ddp(compiled(model)).state_dict(), model, {}, "vit", "timm")


@case("simclr")
def _():
    model = resnet()
    # the converter's file is like torchvision's, and read alike
    file = {"state_dict": model.state_dict()}
    return Case(file, without_head(model), {"classifier": 2}, name="torchvision")


@case("byol-pytorch")
def _():
    online = modules(net=resnet(), projector=mlp(64, 8, 4))
    parts = {"target_encoder": copy.deepcopy(online), "online_predictor": mlp(4, 8, 4)}
    parts |= {"augment1": modules(mean=torch.zeros(3), std=torch.ones(3))}
    whole = modules(net=online.net, online_encoder=online, **parts)
    left_out = {"same encoder again": count(online.net), "classifier": 2}
    left_out |= {"projector": count(online.projector), "momentum encoder": count(online)}
    left_out |= {"predictor": count(parts["online_predictor"]), "augmentation": 2}
    return Case(whole.state_dict(), without_head(online.net), left_out)


def moco(head: Callable[[], nn.Module]) -> Case:
    q, k = resnet(1), resnet(2)
    q.fc, k.fc = head(), head()
    queue = {"queue": torch.rand(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    whole = ddp(modules(encoder_q=q, encoder_k=k, **queue))
    file = {"epoch": 9, "arch": "resnet18", "state_dict": whole.state_dict()}
    file["optimizer"] = optimizer(q)
    left_out = {"projector": count(q.fc), "momentum encoder": count(k), "queue": 2}
    left_out["optimizer"] = len(list(q.parameters()))
    return Case(file, without_head(q), left_out)


@case("moco-v1")
def _():
    return moco(lambda: nn.Linear(64, 8))


@case("moco-v2")
def _():
    return moco(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)))


def moco_v3(make: Callable[[int], nn.Module], head: str, widths: tuple[int, ...]) -> Case:
    base, slow = make(1), make(2)
    for encoder in (base, slow):
        setattr(encoder, head, mlp(*widths, last=nn.BatchNorm1d(widths[-1], affine=False)))
    predictor = mlp(4, 8, 4, last=nn.BatchNorm1d(4, affine=False))
    whole = ddp(modules(base_encoder=base, momentum_encoder=slow, predictor=predictor))
    file = {"epoch": 9, "arch": "x", "state_dict": whole.state_dict(), "scaler": {"scale": 1.0}}
    left_out = {"projector": count(getattr(base, head)), "predictor": count(predictor)}
    return Case(file, without_head(base), left_out | {"momentum encoder": count(slow)})


@case("moco-v3")
def _():
    made = moco_v3(resnet, "fc", (64, 8, 4))
    return made


@case("moco-v3, ViT")
def _():
    made = moco_v3(lambda seed: vit(seed, classes=3), "head", (24, 8, 8, 4))
    made.kind, made.name = "vit", "moco-v3"
    return made


@case("simsiam")
def _():
    encoder = resnet()
    encoder.fc = mlp(64, 8, 8, 4, last=nn.BatchNorm1d(4, affine=False))
    whole = ddp(modules(encoder=encoder, predictor=mlp(4, 2, 4)))
    left_out = {"projector": count(encoder.fc), "predictor": count(whole.module.predictor)}
    return Case({"epoch": 1, "state_dict": whole.state_dict()}, without_head(encoder), left_out)


@case("barlow-twins")
def _():
    encoder = resnet()
    encoder.fc = nn.Identity()
    bn = nn.BatchNorm1d(4, affine=False)
    whole = ddp(modules(backbone=encoder, projector=mlp(64, 8, 4), bn=bn))
    left_out = {"projector": count(whole.module.projector), "loss": count(bn)}
    return Case({"epoch": 1, "model": whole.state_dict()}, encoder, left_out)


def dino_head() -> nn.Module:
    last = nn.utils.weight_norm(nn.Linear(4, 6, bias=False))
    return modules(mlp=nn.Sequential(nn.Linear(24, 4), nn.GELU()), last_layer=last)


@case("dino")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def _():
    teacher = modules(backbone=vit(1), head=dino_head())
    student = ddp(modules(backbone=vit(2), head=dino_head()))
    file = {"student": student.state_dict(), "teacher": teacher.state_dict(), "epoch": 3}
    file |= {"args": argparse.Namespace(arch="vit"), "dino_loss": {"center": torch.zeros(1, 6)}}
    file |= {"optimizer": optimizer(student), "fp16_scaler": {"scale": 2.0}}
    left_out = {"student": count(student), "projector": count(teacher.head), "loss": 1}
    left_out["optimizer"] = len(list(student.parameters()))
    return Case(file, teacher.backbone, left_out, "vit")


@case("dino, backbone")
def _():
    model = vit()
    return Case(model.state_dict(), model, {}, "vit", "timm")


@case("mae")
def _():
    encoder = vit()
    decoder = vit(3)
    whole = copy.copy(encoder)
    whole._modules, whole._parameters = dict(encoder._modules), dict(encoder._parameters)
    whole.mask_token = nn.Parameter(torch.zeros(1, 1, 24))
    whole.decoder_pos_embed = nn.Parameter(decoder.pos_embed.detach())
    whole.decoder_embed, whole.decoder_pred = nn.Linear(24, 24), nn.Linear(24, 48)
    whole.decoder_blocks, whole.decoder_norm = decoder.blocks, decoder.norm
    file = {"model": whole.state_dict(), "args": argparse.Namespace(blr=1e-3), "epoch": 3}
    return Case(file, encoder, {"decoder": count(whole) - count(encoder)}, "vit")


def solo(encoder: nn.Module, name: str, kind: str = "resnet") -> Case:
    encoder.fc = nn.Identity()
    slow = copy.deepcopy(encoder)
    queue = {"queue": torch.rand(2, 4), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    parts = {"projector": mlp(64, 8, 4), "momentum_projector": mlp(64, 8, 4)}
    parts |= {"classifier": nn.Linear(64, 5), "predictor": mlp(4, 2, 4), **queue}
    whole = modules(**{name: encoder, f"momentum_{name}": slow}, **parts)
    left_out = {part: count(parts[part]) for part in ("projector", "classifier", "predictor")}
    left_out |= {"momentum encoder": count(slow) + count(parts["momentum_projector"])}
    left_out |= {"queue": 2, "training state": 1, "optimizer": len(list(whole.parameters()))}
    return Case(lightning(whole), encoder, left_out, kind, "solo-learn")


@case("solo-learn")
def _():
    return solo(resnet(), "backbone")


@case("solo-learn, first releases")
def _():
    return solo(resnet(), "encoder")


def lightly_case(encoder: nn.Module, **options: Any) -> Case:
    """BYOL as lightly's example builds it, with lightly's heads."""
    heads = pytest.importorskip("lightly.models.modules.heads")
    slow = copy.deepcopy(encoder)
    head, predictor = heads.BYOLProjectionHead(64, 8, 4), heads.BYOLPredictionHead(4, 8, 4)
    parts = {"projection_head": head, "prediction_head": predictor}
    parts |= {"projection_head_momentum": copy.deepcopy(head)}
    whole = modules(backbone=encoder, backbone_momentum=slow, **parts)
    left_out = {"momentum encoder": count(slow) + count(head), "projector": count(head)}
    left_out |= {"predictor": count(predictor), "training state": 1}
    left_out["optimizer"] = len(list(whole.parameters()))
    flat = nn.Sequential(encoder, nn.Flatten())
    return Case(lightning(whole), flat, left_out, **options)


@case("lightly")
def _():
    return lightly_case(nn.Sequential(*list(resnet().children())[:-1]).eval())


@case("lightly, torchvision's names")
def _():
    model = resnet()
    model.fc = nn.Identity()
    return lightly_case(model, name="lightly")


@case("lightly, MAE")
def _():
    masked = pytest.importorskip("lightly.models.modules.masked_vision_transformer_timm")
    encoder = masked.MaskedVisionTransformerTIMM(vit=vit())
    shake(encoder)
    whole = modules(backbone=encoder, decoder=nn.Linear(24, 4))
    left_out = {"mask token": 1, "decoder": 2, "training state": 1}
    left_out["optimizer"] = len(list(whole.parameters()))
    return Case(lightning(whole), encoder.vit, left_out, "vit", "lightly")


@case("lightly, MAE of torchvision's ViT")
def _():
    masked = pytest.importorskip("lightly.models.modules.masked_vision_transformer_torchvision")
    encoder = masked.MaskedVisionTransformerTorchvision(vit=torchvision_vit())
    shake(encoder)
    whole = modules(backbone=encoder)
    left_out = {"mask token": 1, "classifier": 2, "training state": 1}
    left_out["optimizer"] = len(list(whole.parameters()))
    return Case(lightning(whole), without_head(encoder.vit), left_out, "vit", "lightly")


@case("lightly-cifar")
def _():
    models = pytest.importorskip("lightly.models")
    children = list(models.ResNetGenerator("resnet-9").children())[:-1]
    model = shake(nn.Sequential(*children, nn.AdaptiveAvgPool2d(1)))
    whole = modules(backbone=model, projection_head=mlp(64, 8, 4))
    left_out = {"projector": count(whole.projection_head)}
    encoder = nn.Sequential(model, nn.Flatten())
    return Case({"state_dict": whole.state_dict()}, encoder, left_out, "lightly-cifar")


@case("lightly-dino")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def _():
    teacher, student = (nn.Sequential(*list(resnet(s).children())[:-1]).eval() for s in (1, 2))
    parts = {"student_backbone": student, "student_head": dino_head()}
    parts |= {"teacher_head": dino_head(), "criterion": modules(center=torch.zeros(1, 1, 6))}
    whole = modules(teacher_backbone=teacher, **parts)
    left_out = {"student": count(student) + 4, "projector": 4, "loss": 1}
    encoder = nn.Sequential(teacher, nn.Flatten())
    return Case({"state_dict": whole.state_dict()}, encoder, left_out)


class UPResNet(nn.Module):
    """United Perception's names: the stem is layer0."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        of = resnet(seed)
        self.layer0 = nn.Sequential(of.conv1, of.bn1, of.relu, of.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            of.layer1,
            of.layer2,
            of.layer3,
            of.layer4,
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.layer0, self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean((2, 3))


@case("up, moco")
def _():
    q, k = UPResNet(1), UPResNet(2)
    heads = [nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)]
    queue = {"queue": torch.rand(4, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    net = modules(encoder_q=q, encoder_k=k, encoder_q_fc=heads[0], encoder_k_fc=heads[1], **queue)
    file = {"model": ddp(modules(backbone=net)).state_dict(), "epoch": 1, "metric_val": -1}
    left_out = {"projector": 4, "momentum encoder": count(k) + 4, "queue": 2}
    return Case(file, q.eval(), left_out, name="up")


@case("up, simsiam")
def _():
    encoder = UPResNet(1).eval()
    net = modules(encoder=encoder, encoder_fc=mlp(64, 8, 4), predictor=mlp(4, 2, 4))
    left_out = {"projector": count(net.encoder_fc), "predictor": count(net.predictor)}
    return Case({"model": net.state_dict(), "iter": 5}, encoder, left_out, name="up")


@case("up, moco-v3")
def _():
    made = moco_v3(lambda seed: vit(seed, classes=3), "head", (24, 8, 8, 4))
    state = {f"backbone.{k[7:]}": v for k, v in made.file["state_dict"].items()}
    return Case({"model": state, "epoch": 1}, made.encoder, made.left_out, "vit", "up")


class UPBlock(nn.Module):
    """A block of United Perception's ViT, with its names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(24, eps=1e-6), nn.LayerNorm(24, eps=1e-6)
        self.attention = modules(to_qkv=nn.Linear(24, 72), to_out=nn.Linear(24, 24))
        self.feedforward = modules(mlp1=nn.Linear(24, 96), mlp2=nn.Linear(96, 24))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attention.to_qkv(self.norm1(x)).unflatten(-1, (3, 2, 12))  # 2 heads of 12
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, 12)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attention.to_out(attended)
        return x + self.feedforward.mlp2(F.gelu(self.feedforward.mlp1(self.norm2(x))))


class UPViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = modules(proj=nn.Conv2d(3, 24, 4, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 24))
        self.blocks = nn.ModuleList([UPBlock(), UPBlock()])
        self.norm = nn.LayerNorm(24, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


@case("up, mae")
def _():
    encoder = shake(UPViT())
    decoder = {"decoder_embed": nn.Linear(24, 24), "decoder_blocks": nn.ModuleList([UPBlock()])}
    rest = modules(mask_token=torch.zeros(1, 1, 24), **decoder).state_dict()
    state = {f"module.backbone.model.{k}": v for k, v in (encoder.state_dict() | rest).items()}
    return Case({"model": state}, encoder, {"decoder": len(rest)}, "vit", "up")


@case("dinov2")
def _():
    """What its training writes; the published files are in a test of their own."""
    encoder = vit()
    state = {re.sub(r"^blocks\.", "blocks.0.", k): v for k, v in encoder.state_dict().items()}
    state = {f"backbone.{k}": v for k, v in state.items()}
    state |= {"backbone.mask_token": torch.zeros(1, 24), "dino_head.mlp.0.weight": torch.ones(2)}
    return Case({"teacher": state}, encoder, {"mask token": 1, "projector": 1}, "vit")


def write(tmp_path: Path, file: Any, name: str = "x.pth") -> Path:
    torch.save(file, tmp_path / name)
    return tmp_path / name


def refusal(path: Path, model: nn.Module, *contains: str, format: str | None = None) -> str:
    """The one line of a refusal, which must leave the encoder as it was."""
    before = weights_hash(model)
    with pytest.raises(UserError) as error:
        load_foreign(path, model, format)
    assert weights_hash(model) == before
    line = str(error.value)
    assert "\n" not in line
    for text in contains:
        assert text in line, line
    return line


def image() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def check_features(made: Case, model: nn.Module) -> None:
    torch.testing.assert_close(model(image()), made.encoder(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_the_foreign_module(name, tmp_path):
    made = CASES[name]()
    model = backbone(made.kind)
    with torch.no_grad():
        x, right = image(), made.encoder(image())
        assert right.std() > 0.1  # an oracle that says something
        assert not torch.allclose(model(x), right, atol=0.1)
    path = write(tmp_path, made.file)
    loaded = load_foreign(path, model)
    check_features(made, model)
    assert loaded.format == (made.name or name)
    assert loaded.left_out == made.left_out
    assert loaded.used == len(made.encoder_keys())
    assert loaded.beyond.heads == (2 if made.kind == "vit" else None)
    again = backbone(made.kind)
    load_foreign(path, again, loaded.format)  # the name forces the same
    assert weights_hash(again) == weights_hash(model)


def test_every_format_is_tested():
    tested = {name.partition(",")[0] for name in CASES}
    elsewhere = {"timm-ema", "dinov3", *TRANSFORMERS}  # below, and in test_transformers.py
    assert set(FORMATS) == tested | elsewhere


def test_every_tensor_arrives_counters_too(tmp_path):
    model, source = backbone("resnet"), resnet()
    load_foreign(write(tmp_path, source.state_dict()), model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_forced_formats_read_what_is_recognised_as_another(tmp_path):
    for name, format in (("simclr", "simclr"), ("dino, backbone", "dino"), ("mae", "mae")):
        made = CASES[name]()
        model = backbone(made.kind)
        assert load_foreign(write(tmp_path, made.file), model, format).format == format
        check_features(made, model)


def test_safetensors_and_any_suffix(tmp_path):
    made = CASES["timm, no classifier, compiled, DDP"]()
    save_file(made.file, tmp_path / "x.safetensors")
    for path in (tmp_path / "x.safetensors", write(tmp_path, made.file, "x.pth.tar")):
        model = backbone("vit")
        load_foreign(str(path), model)
        check_features(made, model)


def test_half_precision_weights_are_read_as_they_are(tmp_path):
    source = resnet()
    model = backbone("resnet")
    load_foreign(write(tmp_path, source.half().state_dict()), model)
    assert torch.equal(model.conv1.weight, source.conv1.weight.float())


def test_line_says_what_went_in_and_what_did_not():
    left_out = {"projector": 4, "momentum encoder": 322, "queue": 2}
    line = "moco-v2: 318 tensors used; left out: projector 4, momentum encoder 322, queue 2"
    assert Loaded("moco-v2", 318, left_out).line() == line
    assert Loaded("timm", 3, {}).line() == "timm: 3 tensors used; nothing left out"
    assert "2 attention heads" in Loaded("timm", 3, {}, Beyond(2)).line()


ATTACKED = ["torchvision", "torchvision, ViT", "timm", "moco-v2", "moco-v3, ViT", "simsiam"]
ATTACKED += ["barlow-twins", "dino", "mae", "solo-learn", "lightly", "up, moco", "up, mae"]


def attack_tensor(state: dict[str, Tensor], key: str, attack: str) -> None:
    """Damage one tensor of a state dict; other attacks change nothing."""
    value = state[key]
    if attack in ("gone", "renamed"):
        del state[key]
    if attack == "renamed":
        state[re.sub(r"(\w)(\W*)$", r"\1x\2", key)] = value
    if attack == "wider":
        state[key] = value.new_zeros(*value.shape, 2)
    if attack == "longer":
        state[key] = torch.cat([value, value])
    if attack == "deeper":
        state[key] = value[None]
    if attack == "integer":
        state[key] = value.long() if value.is_floating_point() else value.float()
    if attack == "extra":
        state[f"{key.rpartition('.')[0]}.extra"] = torch.zeros(3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(ATTACKED),
    attack=st.sampled_from(
        ["gone", "renamed", "wider", "deeper", "integer", "extra", "entry", "nested"]
    ),
    at=st.integers(0, 10_000),
    forced=st.booleans(),
)
def test_a_file_that_is_not_whole_is_refused(name, attack, at, forced, tmp_path):
    made = CASES[name]()
    attacked = Case(dict(made.file), made.encoder, kind=made.kind)
    for entry in ("teacher", "state_dict", "model"):
        if isinstance(attacked.file.get(entry), dict):
            attacked.file[entry] = dict(attacked.file[entry])
    keys, state = attacked.encoder_keys(), attacked.state()
    key = keys[at % len(keys)]
    attack_tensor(state, key, attack)
    if attack == "entry":
        attacked.file["mystery"] = [{"deep": argparse.Namespace(w=torch.zeros(3))}]
    if attack == "nested":
        state["inner"] = {"weight": torch.zeros(3)}
    format = (made.name or name) if forced else None
    refusal(write(tmp_path, attacked.file), backbone(made.kind), "x.pth", format=format)


def test_not_finite(tmp_path):
    for bad in (float("nan"), float("inf")):
        state = copy.deepcopy(resnet().state_dict())
        state["layer3.0.bn1.running_mean"][1] = bad
        refusal(write(tmp_path, state), backbone("resnet"), "not finite: layer3.0.bn1.running_mean")


def test_counters_are_all_there_or_none(tmp_path):
    state = {k: v for k, v in resnet().state_dict().items() if k != f"bn1.{COUNTER}"}
    refusal(write(tmp_path, state), backbone("resnet"), f"lacks bn1.{COUNTER}")
    made = CASES["moco-v2"]()
    state = {k: v for k, v in made.state().items() if not k.endswith(COUNTER)}
    refusal(write(tmp_path, {"state_dict": state}), backbone("resnet"), "moco-v2", COUNTER)


def test_another_architecture(tmp_path):
    """A lenient loader would take 30 of 60 tensors and evaluate the rest as drawn at random."""
    deeper = resnet(layers=(1, 2, 1, 1)).state_dict()
    line = refusal(write(tmp_path, deeper), backbone("resnet"), "torchvision", "backbone.name")
    assert re.search(r"does not explain layer2\.1\.\S+, layer2\.1\.\S+, \S+ and 9 more", line), line
    refusal(write(tmp_path, resnet(layers=(1, 1, 1, 1)).state_dict()), backbone("vit"), "0 of")
    shallow = build_backbone(BackboneConfig(name="resnet34"), 32, seed=0)
    real = torchvision.models.resnet18().state_dict()
    refusal(write(tmp_path, real), shallow, "120 of the encoder's 216 tensors", "the file lacks")
    refusal(write(tmp_path, small_resnet(1).state_dict()), backbone("resnet"), "small_images")


def test_positions_of_another_grid_are_not_interpolated(tmp_path):
    path = write(tmp_path, vit(size=32).state_dict())
    refusal(path, backbone("vit"), "not interpolated", "set the image size", ": image_size=32")


@pytest.mark.parametrize(
    "options", [{"size": 32}, {"size": 32, "patch_size": 8}, {"patch_size": 2}]
)
def test_a_start_resamples_positions_and_patches_by_timms_functions(tmp_path, options):
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    theirs, ours = vit(**options), backbone("vit")
    expected = dict(theirs.state_dict())
    names = {k for k, v in ours.state_dict().items() if v.shape != expected[k].shape}
    assert names <= {"pos_embed", "patch_embed.proj.weight"}
    if "pos_embed" in names:
        moved = resample_abs_pos_embed(expected["pos_embed"], [4, 4], num_prefix_tokens=1)
        expected["pos_embed"] = moved
    if "patch_embed.proj.weight" in names:
        weight = "patch_embed.proj.weight"
        expected[weight] = resample_patch_embed(expected[weight], [4, 4])
    decoder = {f"decoder_blocks.0.{i}": torch.ones(2) for i in range(2)}  # a file of MAE
    loaded = load_foreign(write(tmp_path, {**theirs.state_dict(), **decoder}), ours, resample=True)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert loaded.format == "mae"
    assert all(name in loaded.line().partition("resampled: ")[2] for name in names)


def test_a_start_resamples_nothing_else(tmp_path):
    path = write(tmp_path, vit(size=32, embed_dim=48).state_dict())
    with pytest.raises(UserError, match="of other shape: "):
        load_foreign(path, backbone("vit"), resample=True)
    path = write(tmp_path, vit(size=32, class_token=False, global_pool="avg").state_dict())
    with pytest.raises(UserError, match="the file lacks cls_token"):
        load_foreign(path, backbone("vit"), resample=True)


def test_the_files_of_dinov2(tmp_path):
    """As hubconf.py publishes them, with registers too."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    extra = {"mask_token": torch.zeros(1, 24)}
    theirs = vit(init_values=1.0)
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1.0}
    config = BackboneConfig(name="vit_tiny_patch16_224", patch_size=4, options=options)
    state = {**theirs.state_dict(), **extra}
    ours = build_backbone(config, SIZE, seed=7).eval()
    assert "mask token 1" in load_foreign(write(tmp_path, state), ours).line()
    assert weights_hash(ours) == weights_hash(theirs)
    registers = {"reg_tokens": 4, "no_embed_class": True}
    keys = {"options": options | registers}
    ours = build_backbone(config.model_copy(update=keys), SIZE, seed=7).eval()
    state = {**state, "register_tokens": torch.rand(1, 4, 24)}
    path = write(tmp_path, state)
    expected = checkpoint_filter_fn(dict(state), ours)
    assert load_foreign(path, ours).format == "dinov2"
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    assert ours.pos_embed.shape[1] == 16


def test_heads_that_weights_do_not_show(tmp_path):
    def small_vit(heads: int) -> nn.Module:
        return vit(embed_dim=384, depth=1, num_heads=heads)

    encoder = small_vit(12)
    state = {f"module.base_encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {"module.base_encoder.head.0.weight": torch.zeros(4, 384)}
    for name, file in (("moco-v3", {"state_dict": state}),):
        path = write(tmp_path, file)
        refusal(path, small_vit(6), name, "backbone.options={num_heads: 12}")
        model = shake(small_vit(12), seed=9)
        assert load_foreign(path, model).beyond.heads == 12
        check_features(Case(file, encoder), model)


def test_solo_learns_stem_pads_by_two(tmp_path):
    made = solo(small_resnet(padding=2), "backbone", "small")
    path = write(tmp_path, made.file)
    model = backbone("small")
    refusal(path, model, "solo-learn pads a 3x3 stem by 2", "stem_padding=2")
    model = backbone("small", stem_padding=2)
    load_foreign(path, model)
    check_features(made, model)
    path = write(tmp_path, small_resnet(padding=1).state_dict())
    refusal(path, model, "torchvision pads a 3x3 stem by 1")


def test_lightlys_stem_for_cifar_has_no_relu(tmp_path):
    path = write(tmp_path, CASES["lightly-cifar"]().file)
    model = backbone("lightly-cifar", stem_relu=True)
    refusal(path, model, "lightly-cifar has no ReLU after the stem", "stem_relu=false")
    state = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    state.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    path = write(tmp_path, state.state_dict())
    refusal(path, backbone("lightly-cifar"), "torchvision has a ReLU after the stem")


def test_averaged_weights_are_the_users_choice(tmp_path):
    raw, averaged = vit(1), vit(2)
    file = {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}
    path = write(tmp_path, file)
    refusal(path, backbone("vit"), "format=timm or format=timm-ema")
    for format, right, other in (
        ("timm", raw, "moving average"),
        ("timm-ema", averaged, "raw weights"),
    ):
        model = backbone("vit")
        loaded = load_foreign(path, model, format)
        assert loaded.left_out == {other: count(raw)}
        check_features(Case(file, right), model)


def test_two_formats_in_one_file(tmp_path):
    moco = {k.removeprefix("module."): v for k, v in CASES["moco-v2"]().state().items()}
    file = moco | CASES["solo-learn"]().state()
    path = write(tmp_path, {"state_dict": file})
    refusal(path, backbone("resnet"), "several formats", "format=moco-v2", "format=solo-learn")
    for format in ("moco-v2", "solo-learn"):
        refusal(path, backbone("resnet"), "does not explain", format=format)


def test_names_that_only_begin_like_those_of_a_part_are_not_left_out(tmp_path):
    made = CASES["moco-v2"]()
    state = made.state() | {"module.queue_of_weights": torch.zeros(3)}
    path = write(tmp_path, {"state_dict": state})
    refusal(path, backbone("resnet"), "does not explain module.queue_of_weights")
    path = write(tmp_path, made.file | {"epochs_weights": torch.zeros(3)})
    refusal(path, backbone("resnet"), "does not explain epochs_weights")


def test_two_tensors_for_one_place(tmp_path):
    state = torchvision_vit().state_dict()
    state["cls_token"] = state["class_token"] + 1
    refusal(write(tmp_path, state), backbone("vit"))
    refusal(write(tmp_path, state), backbone("vit"), "cls_token", format="torchvision")


def test_some_keys_with_ddps_prefix_are_two_files_in_one(tmp_path):
    state = resnet().state_dict()
    state["module.conv1.weight"] = state.pop("conv1.weight")
    refusal(write(tmp_path, state), backbone("resnet"))


def test_no_format_and_unknown_format(tmp_path):
    path = write(tmp_path, {"state_dict": {f"my.{i}.w": torch.zeros(2) for i in range(9)}})
    refusal(path, backbone("resnet"), "no known format", "state_dict: my.0.w", "and 6 more")
    refusal(path, backbone("resnet"), "no such format", "'moco-v2'", format="moco-v22")
    refusal(path, backbone("resnet"), "Known: torchvision", format="zzz")
    made = CASES["moco-v2"]()
    refusal(
        write(tmp_path, made.file), backbone("resnet"), "not of format=timm-ema", format="timm-ema"
    )


class Runs:
    """What a pickle may do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path):
    trap = tmp_path / "trap"
    state = resnet().state_dict()
    for extra in (Runs(trap), np.float64(0.5), nn.Linear(2, 2)):
        path = write(tmp_path, {"state_dict": state, "extra": extra})
        refusal(path, backbone("resnet"), "could run any code", "re-save only the state dict")
    path = write(tmp_path, resnet())  # a whole module, not a state dict
    refusal(path, backbone("resnet"), "could run any code")
    assert not trap.exists()


def test_unreadable_files(tmp_path):
    model = backbone("resnet")
    refusal(tmp_path / "none.pth", model, "no such file")
    refusal(tmp_path, model, "no such file")
    whole = write(tmp_path, resnet().state_dict()).read_bytes()
    for i, content in enumerate(
        (b"", b"hello", b"PK\x03\x04", whole[: len(whole) // 2], b"\x80\x04K\x01.")
    ):
        for suffix in ("pth", "safetensors"):
            path = tmp_path / f"{i}.{suffix}"
            path.write_bytes(content)
            refusal(path, model, "not a readable checkpoint" if content[:1] != b"\x80" else str(i))
    for content, text in (
        ({}, "no tensors"),
        ({"state_dict": {}, "epoch": 3}, "no tensors"),
        ([torch.zeros(2)], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
    ):
        refusal(write(tmp_path, content), model, text)
