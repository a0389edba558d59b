"""Converts between parameter names of Hugging Face's detectors and of the public code.

Known are the names in files that transformers writes, versions 4 and 5, and the names in memory of version 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from models import DETECTORS
from models.checkpoints.renaming import Renaming, apply_rules, compile_rules
from util.records import HuggingFace

_BODY = "model.backbone.conv_encoder.model."

# transformers' own ResNet; timm's has torchvision's names.
_RESNET = [
    (f"{_BODY}embedder.embedder.convolution.", "backbone.0.body.conv1."),
    (f"{_BODY}embedder.embedder.normalization.", "backbone.0.body.bn1."),
    (f"{_BODY}encoder.stages.#.layers.*.layer.#.convolution.", "backbone.0.body.layer#.*.conv#."),
    (f"{_BODY}encoder.stages.#.layers.*.layer.#.normalization.", "backbone.0.body.layer#.*.bn#."),
    (f"{_BODY}encoder.stages.#.layers.*.shortcut.convolution.", "backbone.0.body.layer#.*.downsample.0."),
    (f"{_BODY}encoder.stages.#.layers.*.shortcut.normalization.", "backbone.0.body.layer#.*.downsample.1."),
]
_OUR_BODY = "backbone.0.body."

# Names in memory -> in files; learned positions in version 4 -> in version 5.
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
_ATTENTION_INPUT = re.compile(r"(.+\.(?:self|encoder)_attn\.)q_proj\.(weight|bias)")
_FUSED = re.compile(r"(.+\.(?:self|encoder)_attn\.)in_proj_(weight|bias)")


def is_hugging_face(names: set[str]) -> bool:
    """Whether a DETR of transformers has these names."""
    return any(name.startswith(("model.decoder.layers.", "model.query_position_embeddings.")) for name in names)


def to_public(renaming: Renaming) -> None:
    """Rename from Hugging Face's names, in place; unknown names stay."""
    renaming.rename(lambda name: apply_rules(_OF_FILES, name))
    theirs = _family(renaming.weights)
    renaming.rename(theirs.name_in_file)
    for name in list(renaming.weights):
        if match := _ATTENTION_INPUT.fullmatch(name):
            parts = [f"{match[1]}{part}_proj.{match[2]}" for part in "qkv"]
            if all(part in renaming.weights for part in parts):
                renaming.concatenate(parts, f"{match[1]}in_proj_{match[2]}", dim=0)
    rules = compile_rules([*_RESNET, (theirs.timm_body, _OUR_BODY), *theirs.names])
    renaming.rename(lambda name: apply_rules(rules, name))


def from_public(weights: dict[str, Tensor], theirs: HuggingFace, *, timm_backbone: bool) -> dict[str, Tensor]:
    """A detector's state dict under the names in transformers' files; tensors share no memory.

    Args:
        theirs: the detector in transformers.
        timm_backbone: use timm's ResNet, not transformers' own.
    """
    backbone = [(theirs.timm_body, _OUR_BODY)] if timm_backbone else _RESNET
    rules = compile_rules([*backbone, *theirs.names], back=True)
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        new_name = apply_rules(rules, name)
        if match := _FUSED.fullmatch(new_name):
            state |= {
                f"{match[1]}{part}_proj.{match[2]}": x.clone() for part, x in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            state[new_name] = value.clone()
    return state


def _family(names: Iterable[str]) -> HuggingFace:
    """The detector that has all its signs among the names; of several, the one with the most signs."""
    known = [record.hugging_face for record in DETECTORS.values() if record.hugging_face]
    fitting = [one for one in known if all(any(sign in name for name in names) for sign in one.signs)]
    return max(fitting, key=lambda one: len(one.signs))
