"""What is known of the layout of another library's checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Patterns = tuple[tuple[str, str], ...]
State = dict[str, Any]

# torchvision/models/vision_transformer.py, on the left, in timm's names; a ResNet's are the same.
# `linear_1` and `linear_2` are the names before torchvision 0.12.
TORCHVISION_VIT: Patterns = (
    (r"class_token$", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"blocks\.(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"blocks\.(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"blocks\.(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"blocks\.(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"blocks\.(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
)


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
        published: repository where code writes it.
        marks: each fits at least one name; by them a file is recognised.
        prefix: the text before the encoder's own names.
        renames: what a name begins with -> what timm calls it; all are applied, in this order.
        parts: part of the training that is left out -> its names, prefix included.
        where: entries of the file that may hold the state dict, the first that does; "": the file.
        entries: other part -> entries of the file that hold it.
        lacks_counters: the file may have none of batch norm's num_batches_tracked.
        stem_padding: pixels that a ResNet's 3x3 stem is padded by.
        stem_relu: whether a ResNet's stem ends with an activation.
        convert: the tensors by name -> as timm's model uses them; names that it joins or splits are
            others afterwards.
        heads: width of a ViT -> its attention heads, where timm's model of that width has others.
        zeros: timm's names of what may be left out if the encoder has it not and all of it is 0.
        periods: the name of the periods of rotary positions, which timm computes.
        model_types: of transformers, whose config.json says what no weight shows.
        rotary: the encoder's positions are DINOv3's rotary ones.
    """

    published: str
    marks: tuple[str, ...]
    prefix: str = ""
    renames: Patterns = TORCHVISION_VIT
    parts: Patterns = ()
    where: tuple[str, ...] = ("state_dict", "model", "")
    entries: Patterns = ()
    lacks_counters: bool = False
    stem_padding: int = 1
    stem_relu: bool = True
    heads: tuple[tuple[int, int], ...] = ()
    convert: Callable[[State], State] = lambda state: state
    zeros: str = ""
    periods: str = ""
    model_types: tuple[str, ...] = ()
    rotary: bool = False


# Entries of a file beside the weights, in any format, and what they are.
TRAINING: Patterns = (
    ("optimizer", r"optim\w*"),
    ("training state", r"(lr_)?schedulers?|lr_scheduler\w*|(\w+_)?scaler|amp|\w*MixedPrecision\w*"),
    ("training state", r"callbacks|loops|args|hyper_parameters|rng_state\w*|native_amp\w*"),
    ("training state", r"epoch|iter|step|global_step|loss|metric_val|best_\w+"),
)
