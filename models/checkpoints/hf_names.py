"""Parameter names of Hugging Face's DETR, Conditional DETR and Deformable DETR, and those of the public code.

The names are those of the files that transformers writes, version 4 or 5; what version 5 calls them in memory is
taken, too.
"""

from __future__ import annotations

import re

from torch import Tensor

from models.checkpoints.renaming import Renaming, apply_rules, compile_rules

_BODY = "model.backbone.conv_encoder.model."

_SHARED = [
    ("model.encoder.layers.*.self_attn_layer_norm.", "transformer.encoder.layers.*.norm1."),
    ("model.encoder.layers.*.final_layer_norm.", "transformer.encoder.layers.*.norm2."),
    ("model.encoder.layers.*.fc1.", "transformer.encoder.layers.*.linear1."),
    ("model.encoder.layers.*.fc2.", "transformer.encoder.layers.*.linear2."),
    ("model.encoder.layers.*.self_attn.", "transformer.encoder.layers.*.self_attn."),
    ("model.decoder.layers.*.final_layer_norm.", "transformer.decoder.layers.*.norm3."),
    ("model.decoder.layers.*.fc1.", "transformer.decoder.layers.*.linear1."),
    ("model.decoder.layers.*.fc2.", "transformer.decoder.layers.*.linear2."),
    ("model.decoder.layers.*.self_attn.", "transformer.decoder.layers.*.self_attn."),
    ("model.query_position_embeddings.", "query_embed."),
    ("model.position_embedding.row_embeddings.", "backbone.1.row_embed."),
    ("model.position_embedding.column_embeddings.", "backbone.1.col_embed."),
]
_SINGLE_SCALE = [
    *_SHARED,
    ("model.decoder.layers.*.self_attn_layer_norm.", "transformer.decoder.layers.*.norm1."),
    ("model.decoder.layers.*.encoder_attn_layer_norm.", "transformer.decoder.layers.*.norm2."),
    ("model.decoder.layernorm.", "transformer.decoder.norm."),
    ("model.input_projection.", "input_proj."),
    ("class_labels_classifier.", "class_embed."),
    ("bbox_predictor.", "bbox_embed."),
]
_FAMILIES = {
    "vanilla": [
        *_SINGLE_SCALE,
        ("model.decoder.layers.*.encoder_attn.", "transformer.decoder.layers.*.multihead_attn."),
    ],
    "conditional": [
        *_SINGLE_SCALE,
        ("model.decoder.layers.*.encoder_attn.", "transformer.decoder.layers.*.cross_attn."),
        *[
            (f"model.decoder.layers.*.{name}_proj.", f"transformer.decoder.layers.*.{name}_proj.")
            for name in "sa_qcontent sa_qpos sa_kcontent sa_kpos sa_v ca_qcontent ca_qpos ca_kcontent ca_kpos ca_v "
            "ca_qpos_sine".split()
        ],
        ("model.decoder.query_scale.", "transformer.decoder.query_scale."),
        ("model.decoder.ref_point_head.", "transformer.decoder.ref_point_head."),
    ],
    "deformable": [
        *_SHARED,
        ("model.decoder.layers.*.self_attn_layer_norm.", "transformer.decoder.layers.*.norm2."),
        ("model.decoder.layers.*.encoder_attn_layer_norm.", "transformer.decoder.layers.*.norm1."),
        ("model.decoder.layers.*.encoder_attn.", "transformer.decoder.layers.*.cross_attn."),
        ("model.decoder.class_embed.", "transformer.decoder.class_embed."),
        ("model.decoder.bbox_embed.", "transformer.decoder.bbox_embed."),
        *[
            (f"model.{name}", f"transformer.{name}")
            for name in "level_embed reference_points. enc_output. enc_output_norm. pos_trans. pos_trans_norm.".split()
        ],
        ("model.input_proj.", "input_proj."),
    ],
}

# transformers' own ResNet; timm's has torchvision's names.
_RESNET = [
    (f"{_BODY}embedder.embedder.convolution.", "backbone.0.body.conv1."),
    (f"{_BODY}embedder.embedder.normalization.", "backbone.0.body.bn1."),
    (f"{_BODY}encoder.stages.#.layers.*.layer.#.convolution.", "backbone.0.body.layer#.*.conv#."),
    (f"{_BODY}encoder.stages.#.layers.*.layer.#.normalization.", "backbone.0.body.layer#.*.bn#."),
    (f"{_BODY}encoder.stages.#.layers.*.shortcut.convolution.", "backbone.0.body.layer#.*.downsample.0."),
    (f"{_BODY}encoder.stages.#.layers.*.shortcut.normalization.", "backbone.0.body.layer#.*.downsample.1."),
]
_TIMM = [(_BODY, "backbone.0.body.")]

# In memory -> in files, and the place of learned positions in version 4 -> that in version 5.
_OF_FILES = compile_rules(
    [
        ("model.backbone.position_embedding.", "model.position_embedding."),
        ("model.backbone.model.", _BODY),
        *[
            (f"model.{part}.layers.*.{name}.", f"model.{part}.layers.*.{in_file}.")
            for part in ("encoder", "decoder")
            for name, in_file in (
                ("mlp.fc1", "fc1"),
                ("mlp.fc2", "fc2"),
                ("self_attn.o_proj", "self_attn.out_proj"),
                ("encoder_attn.o_proj", "encoder_attn.out_proj"),
            )
        ],
    ]
)
_CONDITIONAL_ATTENTION = re.compile(
    r"(model\.decoder\.layers\.\d+\.)(self|encoder)_attn\.([qk]_(?:content|pos|pos_sine)|v)_proj\."
)
_ATTENTION_INPUT = re.compile(r"(.+\.(?:self|encoder)_attn\.)q_proj\.(weight|bias)")
_FUSED = re.compile(r"(.+\.(?:self|encoder)_attn\.)in_proj_(weight|bias)")


def is_hugging_face(names: set[str]) -> bool:
    """Whether these are names of a DETR of transformers."""
    return any(name.startswith(("model.decoder.layers.", "model.query_position_embeddings.")) for name in names)


def to_public(renaming: Renaming) -> None:
    """Rename from Hugging Face's names, in place; a name that is not known stays."""
    renaming.rename(lambda name: apply_rules(_OF_FILES, name))
    detr = _family(renaming.weights)
    if detr == "conditional":
        renaming.rename(_conditional_name_of_file)
    for name in list(renaming.weights):
        if match := _ATTENTION_INPUT.fullmatch(name):
            parts = [f"{match[1]}{part}_proj.{match[2]}" for part in "qkv"]
            if all(part in renaming.weights for part in parts):
                renaming.concatenate(parts, f"{match[1]}in_proj_{match[2]}", dim=0)
    rules = compile_rules(_RESNET + _TIMM + _FAMILIES[detr])
    renaming.rename(lambda name: apply_rules(rules, name))


def from_public(weights: dict[str, Tensor], detr: str, *, timm_backbone: bool) -> dict[str, Tensor]:
    """A detector's state dict under the names of the files of transformers; tensors share no memory.

    Args:
        detr: "vanilla", "conditional" or "deformable".
        timm_backbone: the ResNet is to be timm's, not transformers' own.
    """
    rules = compile_rules((_TIMM if timm_backbone else _RESNET) + _FAMILIES[detr], back=True)
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        theirs = apply_rules(rules, name)
        if match := _FUSED.fullmatch(theirs):
            state |= {
                f"{match[1]}{part}_proj.{match[2]}": x.clone() for part, x in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            state[theirs] = value.clone()
    return state


def _family(names: dict[str, Tensor]) -> str:
    if any(".sampling_offsets." in name for name in names):
        return "deformable"
    return "conditional" if any(name.startswith("model.decoder.query_scale.") for name in names) else "vanilla"


def _conditional_name_of_file(name: str) -> str:
    """``self_attn.q_pos_proj`` -> ``sa_qpos_proj``, ``encoder_attn.q_pos_sine_proj`` -> ``ca_qpos_sine_proj``."""
    match = _CONDITIONAL_ATTENTION.match(name)
    if match is None:
        return name
    short = {"self": "sa", "encoder": "ca"}[match[2]]
    return f"{match[1]}{short}_{match[3].replace('_', '', 1)}_proj.{name[match.end() :]}"
