"""State dicts of Hugging Face's DETR family under the public names that this project uses.

``to_public(state)`` takes the state dict of ``DetrForObjectDetection``, ``ConditionalDetrForObjectDetection`` or
``DeformableDetrForObjectDetection`` (transformers 5 names), whose ResNet is either transformers' own or timm's.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

_STATISTICS = r"(weight|bias|running_mean|running_var)"
_RESNET = r"model\.backbone\.model\."

# Tried in order on names of which nothing has been replaced yet; the first that matches the whole name is used.
_RULES = [
    # ResNet of transformers
    (_RESNET + r"embedder\.embedder\.convolution\.weight", r"backbone.0.body.conv1.weight"),
    (_RESNET + r"embedder\.embedder\.normalization\." + _STATISTICS, r"backbone.0.body.bn1.\1"),
    (_RESNET + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", r"backbone.0.body.layer{\1}.\2.\3"),
    # ResNet of timm, whose names are torchvision's
    (_RESNET + r"((?:conv1|bn1|layer\d)\..+)", r"backbone.0.body.\1"),
    # Transformer
    (r"model\.(encoder\.layers\.\d+)\.self_attn_layer_norm\.(.+)", r"transformer.\1.norm1.\2"),
    (r"model\.(encoder\.layers\.\d+)\.final_layer_norm\.(.+)", r"transformer.\1.norm2.\2"),
    (r"model\.(decoder\.layers\.\d+)\.self_attn_layer_norm\.(.+)", r"transformer.\1.norm1.\2"),
    (r"model\.(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.(.+)", r"transformer.\1.norm2.\2"),
    (r"model\.(decoder\.layers\.\d+)\.final_layer_norm\.(.+)", r"transformer.\1.norm3.\2"),
    (r"model\.((?:en|de)coder\.layers\.\d+)\.mlp\.fc(\d)\.(.+)", r"transformer.\1.linear\2.\3"),
    (r"model\.decoder\.layernorm\.(.+)", r"transformer.decoder.norm.\1"),
    (r"model\.(decoder\.(?:query_scale|ref_point_head)\..+)", r"transformer.\1"),
    # Heads
    (r"model\.query_position_embeddings\.weight", r"query_embed.weight"),
    (r"model\.input_projection\.(.+)", r"input_proj.\1"),
    (r"class_labels_classifier\.(.+)", r"class_embed.\1"),
    (r"bbox_predictor\.(.+)", r"bbox_embed.\1"),
]

# Tried first on the names of Deformable DETR.
_SAMPLING = r"((?:sampling_offsets|attention_weights|value_proj|output_proj)\..+)"
_DEFORMABLE_RULES = [
    (r"model\.(encoder\.layers\.\d+\.self_attn)\." + _SAMPLING, r"transformer.\1.\2"),
    (r"model\.(decoder\.layers\.\d+)\.encoder_attn\." + _SAMPLING, r"transformer.\1.cross_attn.\2"),
    (r"model\.(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.(.+)", r"transformer.\1.norm1.\2"),
    (r"model\.(decoder\.layers\.\d+)\.self_attn_layer_norm\.(.+)", r"transformer.\1.norm2.\2"),
    (r"model\.(decoder\.(?:class|bbox)_embed\..+)", r"transformer.\1"),
    (r"model\.(level_embed|(?:reference_points|enc_output|pos_trans)\w*\..+)", r"transformer.\1"),
    (r"model\.(input_proj\..+)", r"\1"),
    (r"((?:class|bbox)_embed\..+)", r"\1"),
]

_ATTENTION = re.compile(r"model\.((?:en|de)coder\.layers\.\d+)\.(self_attn|encoder_attn)\.(\w+)\.(weight|bias)")


def to_public(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename every tensor of ``state``; a name that no rule covers is a KeyError."""
    conditional = any("q_content_proj" in name for name in state)
    deformable = any("sampling_offsets" in name for name in state)
    public = {}
    for name, value in state.items():
        match = _ATTENTION.fullmatch(name)
        if deformable and (renamed := _apply(_DEFORMABLE_RULES, name)):
            public[renamed] = value
        elif match is None:
            public[_renamed(name)] = value
        elif conditional and match[1].startswith("decoder"):
            public[_conditional_name(*match.groups())] = value
        elif match[3] == "q_proj":
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            public[_fused_name(*match.groups())] = torch.cat(parts)
        elif match[3] == "o_proj":
            public[_fused_name(*match.groups())] = value
        elif match[3] not in ("k_proj", "v_proj"):  # those two went with q_proj
            raise KeyError(f"no rule for {name}")
    return public


def _renamed(name: str) -> str:
    if renamed := _apply(_RULES, name):
        return _torchvision_block(renamed)
    raise KeyError(f"no rule for {name}")


def _apply(rules: list[tuple[str, str]], name: str) -> str | None:
    """The new name by the first rule that fits; None if none does."""
    matches = ((re.fullmatch(pattern, name), replacement) for pattern, replacement in rules)
    return next((match.expand(replacement) for match, replacement in matches if match), None)


def _torchvision_block(name: str) -> str:
    """``layer{0}.1.layer.2.normalization.bias`` (indices from 0) -> ``layer1.1.bn3.bias``; other names stay."""
    name = re.sub(r"layer\{(\d+)\}", lambda match: f"layer{int(match[1]) + 1}", name)
    name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    name = re.sub(r"\.layer\.(\d+)\.convolution", lambda match: f".conv{int(match[1]) + 1}", name)
    return re.sub(r"\.layer\.(\d+)\.normalization", lambda match: f".bn{int(match[1]) + 1}", name)


def _fused_name(layer: str, attention: str, projection: str, kind: str) -> str:
    """Names of ``nn.MultiheadAttention``, which holds the query, key and value projections in one tensor."""
    module = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}[attention]
    return f"transformer.{layer}.{module}." + (f"out_proj.{kind}" if projection == "o_proj" else f"in_proj_{kind}")


def _conditional_name(layer: str, attention: str, projection: str, kind: str) -> str:
    """``self_attn.q_pos_proj`` -> ``sa_qpos_proj``, ``encoder_attn.o_proj`` -> ``cross_attn.out_proj``."""
    short, module = {"self_attn": ("sa", "self_attn"), "encoder_attn": ("ca", "cross_attn")}[attention]
    if projection == "o_proj":
        return f"transformer.{layer}.{module}.out_proj.{kind}"
    joined = re.sub(r"^([qk])_(pos|content)", r"\1\2", projection)
    return f"transformer.{layer}.{short}_{joined}.{kind}"
