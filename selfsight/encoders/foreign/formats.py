"""The layouts of other libraries' checkpoints, as data; each names where it is published.

Patterns are regular expressions over whole names, after DDP's `module.` and torch.compile's
`_orig_mod.` are gone. A tensor whose name fits none of them is refused, not skipped.
"""

from dataclasses import replace

from selfsight.encoders.foreign import convert
from selfsight.encoders.foreign.format import TORCHVISION_VIT, Format, Patterns
from selfsight.encoders.foreign.transformers import TRANSFORMERS

_CLASSIFIER = r"(fc|head|heads|heads\.head|head\.fc|classifier|head_dist)\.(weight|bias)"
_TIMM = Format(
    published="huggingface/pytorch-image-models: train.py, timm/utils/checkpoint_saver.py",
    marks=(r"(conv1(\.0)?|conv_stem|stem\..+|patch_embed\..+|features\.conv0)\.weight",),
    renames=(),
    parts=(("classifier", _CLASSIFIER), ("mask token", "mask_token")),
    entries=(("moving average", "state_dict_ema|model_ema"),),
)
# pytorch/vision: models, references/classification/train.py. The files of before 2018 have no
# counters of batch norm.
_TORCHVISION = Format(
    published="pytorch/vision",
    marks=(r"(conv1|conv_proj)\.weight",),
    parts=(("classifier", _CLASSIFIER),),
    entries=(("moving average", "model_ema"),),
    lacks_counters=True,
)
_MOCO_PARTS: Patterns = (
    ("momentum encoder", r"(encoder_k|momentum_encoder)\..+"),
    ("predictor", r"predictor\..+"),
    ("queue", r"queue(_ptr)?"),
)
_MOCO_V1 = Format(
    published="facebookresearch/moco: moco/builder.py, main_moco.py",
    marks=(r"encoder_q\.fc\.weight",),
    prefix=r"encoder_q\.",
    parts=(("projector", r"encoder_q\.fc\.(weight|bias)"), *_MOCO_PARTS),
)
# vits.py of MoCo v3 gives ViT-S 12 heads; timm's, as DeiT's, has 6, with equal shapes throughout.
_MOCO_V3_HEADS = ((384, 12),)
_LIGHTLY = Format(
    # Heads and encoders of the examples and benchmarks; where there are two encoders, `backbone` is
    # the one that lightly's own benchmarks evaluate (for MoCo and DINO that is the slow one).
    published="lightly-ai/lightly: examples/pytorch_lightning, benchmarks/imagenet",
    marks=(r"backbone\..+",),
    prefix=r"backbone\.(vit\.)?",  # vit: MaskedVisionTransformerTIMM and -Torchvision
    renames=(
        # nn.Sequential(*list(resnet.children())[:-1]) of torchvision's ResNet
        (r"0\.", "conv1."),
        (r"1\.", "bn1."),
        *((rf"{at}\.(?=\d)", f"layer{at - 3}.") for at in range(4, 8)),
        *TORCHVISION_VIT,
    ),
    parts=(
        ("classifier", rf"backbone\.(vit\.)?{_CLASSIFIER}"),
        ("mask token", r"(backbone\.)?mask_token"),
        ("momentum encoder", r"(teacher|key|momentum|target)_\w+\..+|\w+_momentum\..+"),
        ("student", r"(student|query|anchor)_\w+\..+"),
        ("projector", r"(projection_head|projector|head|global_head|local_head)\..+"),
        ("predictor", r"(prediction_head|predictor)\..+"),
        ("decoder", r"decoder\..+"),
        ("classifier", r"(online_)?classifier\..+"),
        ("prototypes", r"prototypes\..+"),
        ("queue", r"(memory_bank|queues?)\..+"),
        ("loss", r"criterion\w*\..+"),
    ),
)


FORMATS: dict[str, Format] = {
    "torchvision": _TORCHVISION,
    "timm": _TIMM,
    "timm-ema": replace(
        _TIMM,
        where=("state_dict_ema", "model_ema"),
        entries=(("raw weights", "state_dict|model"),),
    ),
    # Google's SimCLR v1, converted from TensorFlow; it wants pixels in [0, 1], not normalised.
    # SimCLR v2's converter (Separius/SimCLRv2-Pytorch) writes another ResNet that timm has not.
    "simclr": replace(_TORCHVISION, published="tonylins/simclr-converter: convert.py"),
    # DeepMind's BYOL is not here: ajtejankar/byol-convert has torchvision's names, but its ResNet
    # pads as JAX does, so timm's would compute other features from the same weights.
    "byol-pytorch": Format(
        published="lucidrains/byol-pytorch: byol_pytorch/byol_pytorch.py",
        marks=(r"online_encoder\.net\..+", r"online_predictor\..+"),
        prefix=r"online_encoder\.net\.",
        parts=(
            ("same encoder again", r"net\..+"),  # the module is registered twice
            ("classifier", rf"online_encoder\.net\.{_CLASSIFIER}"),
            ("projector", r"online_encoder\.projector\..+"),
            ("momentum encoder", r"target_encoder\..+"),
            ("predictor", r"online_predictor\..+"),
            ("augmentation", r"augment[12]\..+"),  # mean and std
        ),
    ),
    "moco-v1": _MOCO_V1,
    "moco-v2": replace(
        _MOCO_V1,
        marks=(r"encoder_q\.fc\.0\.weight", r"encoder_q\.fc\.2\.weight"),
        parts=(("projector", r"encoder_q\.fc\.[02]\.(weight|bias)"), *_MOCO_PARTS),
    ),
    "moco-v3": Format(
        published="facebookresearch/moco-v3: moco/builder.py, vits.py, main_moco.py",
        marks=(r"base_encoder\.(fc|head)\.\d\.weight",),
        prefix=r"base_encoder\.",
        parts=(("projector", r"base_encoder\.(fc|head)\.\d\..+"), *_MOCO_PARTS),
        heads=_MOCO_V3_HEADS,
    ),
    "simsiam": Format(
        published="facebookresearch/simsiam: simsiam/builder.py, main_simsiam.py",
        marks=(r"encoder\.fc\.\d\.weight", r"predictor\.\d\.weight"),
        prefix=r"encoder\.",
        parts=(("projector", r"encoder\.fc\.\d\..+"), ("predictor", r"predictor\.\d\..+")),
    ),
    # VICReg's too; the resnet50.pth of both has torchvision's names.
    "barlow-twins": Format(
        published="facebookresearch/barlowtwins: main.py; facebookresearch/vicreg: main_vicreg.py",
        marks=(r"backbone\.conv1\.weight", r"projector\.\d+\.weight"),
        prefix=r"backbone\.",
        parts=(("projector", r"projector\.\d+\..+"), ("loss", r"bn\..+")),
    ),
    # The teacher is what DINO evaluates; a file of the backbone alone has timm's names.
    "dino": Format(
        published="facebookresearch/dino: main_dino.py, utils.py (MultiCropWrapper)",
        marks=(r"backbone\..+", r"head\.last_layer\..+"),
        prefix=r"(backbone\.)?",
        parts=(("projector", r"head\..+"),),
        where=("teacher", ""),
        entries=(("student", "student"), ("loss", "dino_loss")),
    ),
    # The published files hold the teacher's encoder alone. Training writes the names of the blocks
    # with the number of their chunk before them, for FSDP.
    "dinov2": Format(
        published="facebookresearch/dinov2: dinov2/models/vision_transformer.py, train/train.py",
        marks=(r"(backbone\.)?mask_token", r"(backbone\.)?patch_embed\.proj\.weight"),
        prefix=r"(backbone\.)?",
        renames=(
            (r"blocks\.\d+\.(?=\d+\.)", "blocks."),
            (r"blocks\.(\d+)\.mlp\.w12\.", r"blocks.\1.mlp.fc1."),
            (r"blocks\.(\d+)\.mlp\.w3\.", r"blocks.\1.mlp.fc2."),
            (r"register_tokens$", "reg_token"),
        ),
        parts=(
            ("mask token", r"(backbone\.)?mask_token"),
            ("projector", r"(dino_head|ibot_head)\..+"),
        ),
        where=("teacher", "model", ""),
        entries=(("student", "student"),),
        convert=convert.class_position_into_token,
    ),
    # The biases of queries and values are in timm's models whose names end in _qkvb.
    "dinov3": Format(
        published="facebookresearch/dinov3: dinov3/models/vision_transformer.py, dinov3/layers",
        marks=(r"(backbone\.)?(rope_embed\.periods|storage_tokens)",),
        prefix=r"(backbone\.)?",
        renames=(
            (r"storage_tokens$", "reg_token"),
            (r"blocks\.(\d+)\.ls([12])\.gamma$", r"blocks.\1.gamma_\2"),
            (r"blocks\.(\d+)\.mlp\.w1\.", r"blocks.\1.mlp.fc1_g."),
            (r"blocks\.(\d+)\.mlp\.w2\.", r"blocks.\1.mlp.fc1_x."),
            (r"blocks\.(\d+)\.mlp\.w3\.", r"blocks.\1.mlp.fc2."),
        ),
        parts=(
            ("mask token", r"(backbone\.)?mask_token"),
            ("periods of rotary positions", r"(backbone\.)?rope_embed\.periods"),
            ("norm of local crops", r"(backbone\.)?local_cls_norm\.(weight|bias)"),
            ("projector", r"(dino_head|ibot_head)\..+"),
        ),
        where=("teacher", "model", ""),
        entries=(("student", "student"),),
        convert=convert.split_masked_bias,
        zeros=convert.ZERO_BIASES,
        periods=r"(backbone\.)?rope_embed\.periods",
        rotary=True,
    ),
    "mae": Format(
        published="facebookresearch/mae: models_mae.py, util/misc.py",
        marks=(r"decoder_blocks\..+", r"patch_embed\.proj\.weight"),
        parts=(
            ("decoder", r"(decoder_embed|decoder_blocks|decoder_norm|decoder_pred)\..+"),
            ("decoder", r"decoder_pos_embed|mask_token"),
        ),
    ),
    # Before lightly, which reads the same file alike: the stem's padding is checked here only.
    "solo-learn": Format(
        published="vturrisi/solo-learn: solo/methods",
        marks=(r"(backbone|encoder)\..+", r"classifier\.(weight|bias)"),
        prefix=r"(backbone|encoder)\.",  # encoder: its first releases
        parts=(
            ("momentum encoder", r"momentum_\w+\..+"),
            ("projector", r"(projector|head)\..+"),
            ("predictor", r"predictor\..+"),
            ("classifier", r"classifier\.(weight|bias)"),
            ("prototypes", r"prototypes\..+"),
            ("decoder", r"decoder\..+"),
            ("queue", r"queue\w*|local_memory_\w+"),
            ("loss", r"dino_loss_func\..+"),
        ),
        stem_padding=2,
    ),
    "lightly": _LIGHTLY,
    # nn.Sequential(*list(ResNetGenerator(...).children())[:-1]), as in lightly's CIFAR benchmark.
    # The stem's ReLU is in the generator's forward and not among its children, so it is gone here.
    "lightly-cifar": replace(
        _LIGHTLY,
        published="lightly-ai/lightly: lightly/models/resnet.py",
        marks=(r"backbone\.0\.weight", r"backbone\.2\.0\.conv1\.weight"),
        renames=(
            (r"0\.", "conv1."),
            (r"1\.", "bn1."),
            *((rf"{at}\.(?=\d)", f"layer{at - 1}.") for at in range(2, 6)),
            (r"(layer\d\.\d+)\.shortcut\.", r"\1.downsample."),
        ),
        stem_relu=False,
    ),
    "lightly-dino": replace(
        _LIGHTLY,
        published="lightly-ai/lightly: examples/pytorch_lightning/dino.py",
        marks=(r"teacher_backbone\..+", r"student_backbone\..+"),
        prefix=r"teacher_backbone\.",
        parts=(
            ("student", r"student_\w+\..+"),
            ("projector", r"teacher_head\..+"),
            ("loss", r"criterion\..+"),
        ),
    ),
    # United Perception. `backbone.` is the name of the net's entry in its recipes.
    "up": Format(
        published="ModelTC/United-Perception: up/tasks/ssl/wrapper, up/models, saver_helper.py",
        marks=(
            r"(backbone\.)?(encoder_q|encoder)\.layer0\..+|(backbone\.)?(encoder_q|encoder)_fc\..+|"
            r"backbone\.base_encoder\..+|(backbone\.)?model\.blocks\.\d+\.attention\..+",
        ),
        prefix=r"(backbone\.)?(encoder_q|encoder|base_encoder|model)\.",
        renames=(
            (r"layer0\.0\.", "conv1."),
            (r"layer0\.1\.", "bn1."),
            (r"blocks\.(\d+)\.attention\.to_qkv\.", r"blocks.\1.attn.qkv."),
            (r"blocks\.(\d+)\.attention\.to_out\.", r"blocks.\1.attn.proj."),
            (r"blocks\.(\d+)\.feedforward\.mlp([12])\.", r"blocks.\1.mlp.fc\2."),
        ),
        parts=(
            ("momentum encoder", r"(backbone\.)?(encoder_k|encoder_k_fc|momentum_encoder)\..+"),
            ("projector", r"(backbone\.)?(encoder(_q)?_fc|base_encoder\.head)\.\d\..+"),
            ("predictor", r"(backbone\.)?predictor\.\d\..+"),
            ("queue", r"(backbone\.)?queue(_ptr)?"),
            ("decoder", r"(backbone\.)?model\.(decoder_\w+(\..+)?|mask_token)"),
        ),
        entries=(("moving average", "ema"),),
        heads=_MOCO_V3_HEADS,
    ),
    **TRANSFORMERS,
}
