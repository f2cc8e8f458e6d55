"""Files in United Perception's language, written from its description, for the tests."""

import copy
from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]

RESNET: Tree = {
    "frozen_layers": [],
    "out_layers": [4],
    "out_strides": [32],
    "normalize": {"type": "solo_bn"},
    "initializer": {"method": "msra"},
    "zero_init_residual": True,
}
VIEWS = {"moco": "torch_mocov2", "moco_vit": "torch_mocov3", "simclr": "torch_simclrv1"}
MODELS = {
    "moco": ["encoder_q", "encoder_k"],
    "moco_vit": ["encoder_q", "encoder_k"],
    "simclr": ["encoder"],
    "simsiam": ["base_encoder"],
    "MAE": ["model"],
}
LOSSES = {
    "moco": "moco_loss",
    "moco_vit": "contrastive_loss",
    "simclr": "simclr_loss",
    "simsiam": "simsiam_loss",
    "MAE": "mae_loss",
}
RRC = {"type": "torch_random_resized_crop", "kwargs": {"size": 224, "scale": [0.2, 1.0]}}
FLIP = {"type": "torch_random_horizontal_flip"}
NORMALIZE = {"type": "normalize", "kwargs": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
TENSOR = {"type": "to_tensor"}
TESTED = [
    {"type": "torch_resize", "kwargs": {"size": 256}},
    {"type": "torch_center_crop", "kwargs": {"size": 224}},
    TENSOR,
    NORMALIZE,
]


def split(meta: str, images: str, transformer: list, batch: int = 64, **kwargs: Any) -> Tree:
    """One of dataset.train and dataset.test."""
    reader = {"image_dir": images, "color_mode": "RGB", "memcached": True}
    dataset = {
        "meta_file": meta,
        "image_reader": {"type": "fs_pillow", "kwargs": reader},
        "transformer": transformer,
        **kwargs,
    }
    return {
        "dataset": {"type": "cls", "kwargs": dataset},
        "batch_sampler": {
            "type": "base",
            "kwargs": {"sampler": {"type": "dist", "kwargs": {}}, "batch_size": batch},
        },
        "dataloader": {"type": "cls_base", "kwargs": {"num_workers": 4, "pin_memory": True}},
    }


def trainer(epochs: int = 100, scheduler: Tree | None = None, **optimizer: Any) -> Tree:
    kwargs = {"lr": 0.06, "momentum": 0.9, "weight_decay": 1e-4, **optimizer}
    return {
        "max_epoch": epochs,
        "test_freq": 5,
        "save_freq": 5,
        "is_eval": False,
        "only_save_latest": True,
        "optimizer": {"type": "SGD", "kwargs": kwargs},
        "lr_scheduler": {
            "warmup_iter": 0,
            "warmup_type": "linear",
            "warmup_ratio": 0,
            "warmup_register_type": "no_scale_lr",
            **(scheduler or {"type": "CosineAnnealingLR", "kwargs": {"T_max": epochs}}),
        },
    }


def pretraining(
    wrapper: str = "moco", kwargs: Tree | None = None, encoder: str = "resnet50"
) -> Tree:
    """A file that pretrains; `net` is in the order of UP's page."""
    transformer = [{"type": VIEWS[wrapper]}] if wrapper in VIEWS else [RRC, FLIP, TENSOR, NORMALIZE]
    inner = copy.deepcopy(RESNET) if "resnet" in encoder else {}
    models = [{"name": n, "type": encoder, "kwargs": inner} for n in MODELS[wrapper]]
    train = split("train.txt", "images", transformer, meta_type="moco_imagenet")
    return copy.deepcopy(
        {
            "runtime": {"task_names": "ssl"},
            "dataset": {"train": train},
            "trainer": trainer(),
            "saver": {"save_dir": "out/ck", "results_dir": "out/results", "auto_resume": True},
            "hooks": [{"type": "auto_save_best"}],
            "net": [
                {
                    "name": "backbone",
                    "type": "ssl",
                    "multi_model": models,
                    "wrappers": [{"type": wrapper, "kwargs": kwargs or {}}],
                },
                {
                    "name": "post_process",
                    "type": "base_ssl_postprocess",
                    "kwargs": {"ssl_loss": {"type": LOSSES[wrapper]}},
                },
            ],
        }
    )


def classifier(frozen: bool, encoder: str = "resnet50", head: Tree | None = None) -> Tree:
    """A file that evaluates: linear if the encoder is frozen, else fine-tuning."""
    judge = {"type": "imagenet", "kwargs": {"topk": [1, 5]}}
    test = split("val.txt", "val", TESTED, 32, evaluator=judge)
    vit = {"drop_path": 0.1, "dropout": 0.0, "attention_dropout": 0.0, "qkv_bias": True}
    freeze = {"name": "fix_layers", "type": "self", "kwargs": {"freeze_patterns": ["backbone"]}}
    kind = "vit_head" if "vit" in encoder else "base_cls_head"
    inside = {"num_classes": 1000, "in_plane": 2048, "input_feature_idx": -1, **(head or {})}
    loss = {"type": "label_smooth_ce", "kwargs": {"smooth_ratio": 0.1, "num_classes": 1000}}
    net = [
        {"name": "backbone", "type": encoder, "kwargs": vit if "vit" in encoder else RESNET},
        {"name": "head", "type": kind, "kwargs": inside},
        {"name": "post_process", "type": "base_cls_postprocess", "kwargs": {"cls_loss": loss}},
    ]
    return copy.deepcopy(
        {
            "num_classes": 1000,
            "runtime": {"task_names": "ssl"},
            "dataset": {
                "train": split("train.txt", "train", [RRC, FLIP, TENSOR, NORMALIZE]),
                "test": test,
            },
            "trainer": trainer(),
            "saver": {
                "save_dir": "out/linear",
                "results_dir": "out/linear_results",
                "auto_resume": True,
                "pretrain_model": "ckpt.pth",
            },
            "hooks": [{"type": "auto_save_best"}],
            "net": [freeze, *net] if frozen else net,
        }
    )


def write(path: Path, tree: Tree) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def at(tree: Any, key: str) -> Any:
    """What a dotted key names; numbers are places in lists."""
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


def put(tree: Tree, key: str, value: Any) -> Tree:
    """A copy with another value at a dotted key."""
    tree = copy.deepcopy(tree)
    *parents, leaf = key.split(".")
    node = at(tree, ".".join(parents)) if parents else tree
    if isinstance(node, list):
        node[int(leaf)] = value
    else:
        node[leaf] = value
    return tree
