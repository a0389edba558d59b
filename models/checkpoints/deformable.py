"""Checkpoints of Deformable DETR: its flags from its weights, the heads of its layers, its form in transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from models.checkpoints.hf_shared import SHARED
from models.checkpoints.renaming import Renaming, num_layers
from util.errors import CheckpointError
from util.records import HuggingFace

DECIDING_FLAGS = (
    (
        r"transformer\.(encoder|decoder)\.layers\.\d+\.(self|cross)_attn\.(sampling_offsets|attention_weights)",
        "--num_feature_levels, --enc_n_points, --dec_n_points, --nheads or --hidden_dim",
    ),
    (r"transformer\.decoder\.bbox_embed", "--with_box_refine, --two_stage, --dec_layers or --hidden_dim"),
    (r"transformer\.decoder\.class_embed", "--two_stage, --dec_layers or --hidden_dim"),
    (r"transformer\.(enc_output|pos_trans)", "--two_stage or --hidden_dim"),
    (r"transformer\.reference_points", "--two_stage, --hidden_dim or --detr"),
    (r"transformer\.level_embed", "--num_feature_levels, --hidden_dim or --detr"),
    (r"input_proj\.\d", "--backbone, --feature_stride, --num_feature_levels or --hidden_dim"),
)

_HEADS = ("class_embed.", "bbox_embed.")


def infer(weights: dict[str, Tensor], size: Callable[[str], int], known: dict[str, Any]) -> dict[str, Any]:
    """The detector's own flags.

    Args:
        weights: under the names of this project.
        size: name of a required parameter -> its first dimension.
        known: ``nheads``.

    Raises:
        CheckpointError: a needed parameter is missing, or its architecture is not supported.
    """
    levels = size("transformer.level_embed")
    if levels not in (1, 4):
        raise CheckpointError(f"has {levels} feature levels; --num_feature_levels can be 1 or 4")
    samples = levels * known["nheads"]
    two_stage = "transformer.enc_output.weight" in weights
    told = {
        "num_feature_levels": levels,
        "enc_n_points": _points(size("transformer.encoder.layers.0.self_attn.attention_weights.bias"), samples),
        "dec_n_points": _points(size("transformer.decoder.layers.0.cross_attn.attention_weights.bias"), samples),
        "with_box_refine": any(name.startswith("transformer.decoder.bbox_embed.") for name in weights),
        "two_stage": two_stage,
    }
    return told | ({"num_queries": None} if two_stage else {})


def _points(outputs: int, samples: int) -> int:
    if samples < 1 or outputs % samples:
        raise CheckpointError(
            f"{outputs} attention weights per query are not a multiple of levels times heads ({samples}); "
            "see --nheads and --num_feature_levels"
        )
    return outputs // samples


def tidy(renaming: Renaming, config: dict[str, Any] | None) -> None:
    """Join the two halves of the queries if the file has them apart, and give each decoder layer its heads.

    Args:
        config: the configuration of Hugging Face; it may say ``with_box_refine``.
    """
    parts = ["query_embed.weight", "transformer.tgt_embed.weight"]
    if all(part in renaming.weights for part in parts):
        renaming.concatenate(parts, parts[0], dim=1)
    complete_heads(renaming, refines=config is not None and config.get("with_box_refine") is True)


def complete_heads(renaming: Renaming, *, refines: bool) -> None:
    """Give each decoder layer its heads; a file may name shared heads only once.

    The authors' pretraining has one head without a number. Hugging Face leaves out heads that equal the first layer's.
    If the decoder uses the heads, they have two names, and Hugging Face leaves out one of them.
    """
    two_stage = "transformer.enc_output.weight" in renaming.weights
    used_by_decoder = {"bbox_embed.": refines or two_stage, "class_embed.": two_stage}
    for head in _HEADS:
        renaming.rename(lambda name: re.sub(rf"^{re.escape(head)}(?=weight|bias|layers)", f"{head}0.", name))  # noqa: B023
        of_decoder = f"transformer.decoder.{head}"
        renaming.alias(of_decoder, head)
        if used_by_decoder[head] or renaming.names(of_decoder):
            renaming.alias(head, of_decoder)
        first = renaming.names(f"{head}0.")
        if first == renaming.names(head):
            for index in range(1, num_layers(renaming.weights, "transformer.decoder.layers")):
                for name in first:
                    renaming.copy(name, name.replace(".0.", f".{index}.", 1))


def _make_config(args: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    return common | {
        "num_feature_levels": args["num_feature_levels"],
        "encoder_n_points": args["enc_n_points"],
        "decoder_n_points": args["dec_n_points"],
        "with_box_refine": args["with_box_refine"],
        "two_stage": args["two_stage"],
        "two_stage_num_proposals": args["num_queries"],
    }


def _hints(config: dict[str, Any]) -> dict[str, Any]:
    return {"num_queries": config.get("two_stage_num_proposals", 300)} if config.get("two_stage") else {}


HUGGING_FACE = HuggingFace(
    model_type="deformable_detr",
    class_name="DeformableDetr",
    names=[
        *SHARED,
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
    signs=(".sampling_offsets.",),
    config=_make_config,
    hints=_hints,
    sees_levels=lambda args: args["num_feature_levels"] > 1,
)
