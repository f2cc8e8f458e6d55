"""The layouts of the Vision Transformers of the library transformers, as data.

Its files have the names that its first releases gave; the modules have had others since, which are
in a file that torch.save wrote of a module's state dict.
"""

from selfsight.encoders.foreign import convert
from selfsight.encoders.foreign.format import Format, Patterns

_PREFIX = r"(dinov2\.|dinov2_with_registers\.|vit\.|dinov3_vit\.)?"
_EMBEDDINGS: Patterns = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(?=\w+$)", "patch_embed.proj."),
    (r"(?:encoder\.layer|layers|layer|model\.layer)\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
)
_ATTENTION: Patterns = (
    (r"blocks\.(\d+)\.attention\.qkv\.", r"blocks.\1.attn.qkv."),
    (r"blocks\.(\d+)\.attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
)
_PARTS: Patterns = (
    ("mask token", rf"{_PREFIX}embeddings\.mask_token"),
    ("classifier", r"classifier\.(weight|bias)"),
)

TRANSFORMERS: dict[str, Format] = {
    "transformers-dinov2": Format(
        published="huggingface/transformers: models/dinov2, models/dinov2_with_registers",
        marks=(rf"{_PREFIX}embeddings\.position_embeddings", r".+\.layer_scale1\.lambda1"),
        prefix=_PREFIX,
        renames=(
            *_EMBEDDINGS,
            *_ATTENTION,
            (r"blocks\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
            (r"blocks\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
            (r"blocks\.(\d+)\.mlp\.(?:weights_out|down_proj)\.", r"blocks.\1.mlp.fc2."),
        ),
        parts=_PARTS,
        convert=lambda state: convert.class_position_into_token(convert.join_transformers(state)),
        model_types=("dinov2", "dinov2_with_registers"),
    ),
    # ViTMAE as well, whose encoder has the same names. `pooler` is a layer after the class token.
    "transformers-vit": Format(
        published="huggingface/transformers: models/vit, models/vit_mae",
        marks=(rf"{_PREFIX}embeddings\.position_embeddings", r".+\.layernorm_before\.weight"),
        prefix=_PREFIX,
        renames=(
            *_EMBEDDINGS,
            *_ATTENTION,
            (r"blocks\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
            (r"blocks\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
            (r"blocks\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
            (r"blocks\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
        ),
        parts=(*_PARTS, ("pooler", rf"{_PREFIX}pooler\.dense\.\w+"), ("decoder", r"decoder\..+")),
        convert=convert.join_transformers,
        model_types=("vit", "vit_mae"),
    ),
    "transformers-dinov3": Format(
        published="huggingface/transformers: models/dinov3_vit",
        marks=(rf"{_PREFIX}embeddings\.patch_embeddings\.weight", r".+\.layer_scale1\.lambda1"),
        prefix=_PREFIX,
        renames=(
            *_EMBEDDINGS,
            *_ATTENTION,
            (r"blocks\.(\d+)\.attention\.([qkv])_proj\.bias$", r"blocks.\1.attn.\2_bias"),
            (r"blocks\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.gamma_\2"),
            (r"blocks\.(\d+)\.mlp\.up_proj\.", r"blocks.\1.mlp.fc1."),
            (r"blocks\.(\d+)\.mlp\.gate_proj\.", r"blocks.\1.mlp.fc1_g."),
            (r"blocks\.(\d+)\.mlp\.gated_proj\.", r"blocks.\1.mlp.fc1_x."),
            (r"blocks\.(\d+)\.mlp\.down_proj\.", r"blocks.\1.mlp.fc2."),
        ),
        parts=_PARTS,
        convert=convert.join_dinov3,
        zeros=convert.ZERO_BIASES,
        model_types=("dinov3_vit",),
        rotary=True,
    ),
}
