"""Lightweight-SSL's names and their values here, as data."""

from dataclasses import dataclass, field
from typing import Any

from selfsight.config import Tree

LOGGERS = ("wandb", "csv", "tensorboard")
# [wandb_args] -> key below log.wandb
WANDB_ARGS = {key: key for key in ("name", "project", "entity", "offline")} | {"save_dir": "folder"}


@dataclass(frozen=True)
class DataSet:
    """What `dataset` stands for.

    Attributes:
        path: where it lies if data_dir does not say; "": it must.
        size: side of the crops that its code takes.
    """

    source: str
    path: str
    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


_TORCHVISION, _HALF = "/data/tch_ds", (0.5, 0.5, 0.5)
DATA_SETS = {
    "cifar10": DataSet(
        "torchvision:CIFAR10", _TORCHVISION, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": DataSet(
        "torchvision:CIFAR100", _TORCHVISION, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
    "stl10": DataSet(
        "torchvision:STL10", _TORCHVISION, 96, (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)
    ),
    "imagenet": DataSet("auto", "/data/ImgNet", 224),
    "slim": DataSet("auto", "", 64, _HALF, (0.25, 0.25, 0.25)),
    "custom": DataSet("auto", "", 224),
}

# The one view recipe of its code, for every data set.
AUGMENTATION: Tree = {
    "crop_scale": [0.08, 1.0],
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.5,
}
# Keys of custom_ds_cfg: the arguments of that recipe -> key of a view group, type.
KINDS: dict[str, tuple[str, type]] = {
    "crop_size": ("size", int),
    "horizontal_flip_prob": ("flip", float),
    "color_jitter_prob": ("jitter", float),
    "brightness": ("brightness", float),
    "contrast": ("contrast", float),
    "saturation": ("saturation", float),
    "hue": ("hue", float),
    "gray_scale_prob": ("grayscale", float),
    "gaussian_prob": ("blur", float),
    "solarization_prob": ("solarize", float),
}

# compute_cfg: arguments of Lightning's Trainer -> native key, types.
COMPUTE: dict[str, tuple[Any, ...]] = {
    "accumulate_grad_batches": ("accumulate", int),
    "gradient_clip_val": ("clip_gradient", float),
    "log_every_n_steps": ("log_every", int),
    "max_steps": ("max_steps", int),
    "sync_batchnorm": ("sync_batchnorm", bool),
}
# ... -> native key, its value -> the value here, and why it is another.
NAMED: dict[str, tuple[str, dict[str, str], str]] = {
    "accelerator": (
        "device",
        {"auto": "auto", "gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"},
        "the device's name here",
    ),
    "precision": (
        "precision",
        {"16": "auto", "16-mixed": "auto", "bf16": "bf16", "bf16-mixed": "bf16", "32": "fp32"},
        "bfloat16 where the hardware has it, which needs no scaling of the loss, else float32",
    ),
}
WITHOUT_EFFECT = {
    "auto_select_gpus": "torchrun gives each process its device",
    "deterministic": "runs are repeatable as they are",
    "benchmark": "is chosen here by the device",
    "enable_progress_bar": "a bar in a terminal, lines in a pipe",
    "enable_checkpointing": "checkpoints are always written",
}

# [ssl_args] -> native key; "" of what only some methods have.
SSL_ARGS = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "momentum": "optimizer.momentum",
    "warmup_epochs": "schedule.warmup_epochs",
    "proj_hidden_dim": "method.hidden_dim",
    "proj_output_dim": "method.output_dim",
    "temperature": "",
    "pred_hidden_dim": "",
    "lamb": "",
    "scale_loss": "",
    "queue_size": "",
}


@dataclass(frozen=True)
class Method:
    """What `ssl_method` stands for.

    Attributes:
        optimizer: as the papers have it; a file's own keys come over it.
        arguments: more of SSL_ARGS that it has.
        teacher: it has a slow teacher, whose momentum is close to 1.
    """

    name: str
    optimizer: Tree
    arguments: dict[str, str] = field(default_factory=dict)
    teacher: bool = False


def _lars(lr: float, weight_decay: float) -> Tree:
    """lr: for 256 images."""
    return {"name": "lars", "lr": lr, "lr_scaling": "linear", "weight_decay": weight_decay}


def _sgd(lr: float) -> Tree:
    return {"name": "sgd", "lr": lr, "lr_scaling": "linear", "weight_decay": 1e-4}


_T = {"temperature": "method.temperature"}
_QUEUE = {"queue_size": "method.queue_size"}
_PREDICTOR = {"pred_hidden_dim": "method.predictor_dim"}
_BARLOW = {"lamb": "method.off_diagonal_weight", "scale_loss": "method.loss_scale"}
METHODS = {
    "simclr": Method("simclr", _lars(0.3, 1e-6), _T),
    "simsiam": Method("simsiam", _sgd(0.05), _PREDICTOR),
    "barlowtwin": Method("barlow_twins", _lars(0.2, 1.5e-6), _BARLOW),
    "nnclr": Method("nnclr", _lars(0.3, 1e-6), {**_T, **_QUEUE, **_PREDICTOR}),
    "byol": Method("byol", _lars(0.2, 1.5e-6), {"pred_hidden_dim": "method.hidden_dim"}, True),
    "mocov2": Method("moco_v2", _sgd(0.03), {**_T, **_QUEUE}, True),
}
