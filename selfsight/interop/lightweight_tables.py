"""Lightweight-SSL's keys and values, and Selfsight's in their place."""

from dataclasses import dataclass, field

from selfsight.config import Tree

LOGGERS = ("wandb", "csv", "tensorboard")
WANDB_ARGS = (
    ("copy", "save_dir", "log.wandb.folder", "@str"),
    *(("copy", key, f"log.wandb.{key}", "@str") for key in ("name", "project", "entity")),
    ("copy", "offline", "log.wandb.offline", "@bool"),
)


@dataclass(frozen=True)
class DataSet:
    """A value of `dataset`."""

    source: str
    path: str  # the default of data_dir; "": data_dir is required
    size: int  # side of the crops in pixels
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

# The view recipe in its code, the same for every data set.
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
# custom_ds_cfg: arguments of that recipe -> key of a view group
CUSTOM = {
    "crop_size": "size",
    "horizontal_flip_prob": "flip",
    "color_jitter_prob": "jitter",
    **{key: key for key in ("brightness", "contrast", "saturation", "hue")},
    "gray_scale_prob": "grayscale",
    "gaussian_prob": "blur",
    "solarization_prob": "solarize",
}

# compute_cfg: arguments of Lightning's Trainer
COMPUTE = (
    ("copy", "accumulate_grad_batches", "accumulate", "@int"),
    ("copy", "gradient_clip_val", "clip_gradient", "@float"),
    ("copy", "log_every_n_steps", "log_every", "@int"),
    ("copy", "max_steps", "max_steps", "@int"),
    ("copy", "sync_batchnorm", "sync_batchnorm", "@bool"),
    ("ignore", "torchrun gives each process its device", "auto_select_gpus"),
    ("ignore", "every run can be repeated", "deterministic"),
    ("ignore", "Selfsight chooses it by the device", "benchmark"),
    ("ignore", "a terminal shows a bar, a pipe gets lines", "enable_progress_bar"),
    ("ignore", "checkpoints are always written", "enable_checkpointing"),
)
# ... -> native key, {value: native value}, reason for another value
NAMED: dict[str, tuple[str, dict[str, str], str]] = {
    "accelerator": (
        "device",
        {"auto": "auto", "gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"},
        "Selfsight's name of the device",
    ),
    "precision": (
        "precision",
        {"16": "auto", "16-mixed": "auto", "bf16": "bf16", "bf16-mixed": "bf16", "32": "fp32"},
        "bfloat16 where the hardware supports it (it needs no scaling of the loss), else float32",
    ),
}
# [ssl_args] -> native key; "": only some methods have it, see Method.arguments
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
    """A value of `ssl_method`."""

    name: str
    optimizer: Tree  # of the paper; the file's keys replace its values
    arguments: dict[str, str] = field(default_factory=dict)  # replace entries of SSL_ARGS
    teacher: bool = False  # has a slow teacher, whose momentum is close to 1


def _lars(lr: float, weight_decay: float) -> Tree:
    """`lr` is for 256 images."""
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
