"""The architecture flags that a state dict tells, and those that decide the shape of each of its parameters."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from models.checkpoints.load import deciding_flag
from util.errors import CheckpointError

_BODY = "backbone.0.body."
_RESNETS = {
    ("conv2", (2, 2, 2, 2)): "resnet18",
    ("conv2", (3, 4, 6, 3)): "resnet34",
    ("conv3", (3, 4, 6, 3)): "resnet50",
    ("conv3", (3, 4, 23, 3)): "resnet101",
}
"""By the last convolution of a block and the blocks of each stage."""

ASSUMED = {"nheads": 8, "dilation": False, "num_queries": 300}
"""What every paper has, for flags that weights do not tell: the number of queries where a second stage makes them."""


def infer_architecture(
    weights: dict[str, Tensor], hints: dict[str, Any], source: object
) -> tuple[dict[str, Any], list[str]]:
    """Arguments that build the detector of a state dict.

    Args:
        weights: under the names of this project.
        hints: arguments that are known otherwise; of these, what weights do not tell is taken.
        source: the file, for messages.

    Returns:
        The arguments, and the names of those that neither weights nor hints tell (see :data:`ASSUMED`).

    Raises:
        CheckpointError: a parameter that decides is missing, or what it decides is not supported; names the flag.
    """
    size = _Sizes(weights, source)
    encoder, decoder = "transformer.encoder.layers", "transformer.decoder.layers"
    detr = _detector_of(weights, source)
    told = {
        "detr": detr,
        "backbone": _backbone_of(weights, hints, source),
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in weights else "sine",
        "enc_layers": num_layers(weights, encoder),
        "dec_layers": num_layers(weights, decoder),
        "hidden_dim": size(f"{encoder}.0.norm1.weight"),
        "dim_feedforward": size(f"{encoder}.0.linear1.bias"),
        "num_feature_levels": 1,
        "feature_stride": hints.get("feature_stride"),
        "with_box_refine": any(name.startswith("transformer.decoder.bbox_embed.") for name in weights),
        "two_stage": "transformer.enc_output.weight" in weights,
    }
    told |= {name: hints[name] for name in ASSUMED if name in hints}
    assumed = {name: value for name, value in ASSUMED.items() if name not in told}
    if not told["two_stage"]:
        told["num_queries"] = size("query_embed.weight")
        assumed.pop("num_queries", None)
    if detr == "deformable":
        told["num_feature_levels"] = levels = size("transformer.level_embed")
        if levels not in (1, 4):
            raise CheckpointError(f"{source}: sees {levels} levels; --num_feature_levels knows 1 and 4")
        samples = levels * (told | assumed)["nheads"]
        told["enc_n_points"] = _points(size(f"{encoder}.0.self_attn.attention_weights.bias"), samples, source)
        told["dec_n_points"] = _points(size(f"{decoder}.0.cross_attn.attention_weights.bias"), samples, source)
    return told | assumed, list(assumed)


def resnet_of(names: dict[str, Tensor], prefix: str = "") -> str | None:
    """The ResNet whose parameters have these names after ``prefix``; None if they are those of none."""
    stages = [re.compile(rf"{re.escape(prefix)}layer{n}\.(\d+)\.") for n in range(1, 5)]
    blocks = [len({match[1] for name in names if (match := pattern.match(name))}) for pattern in stages]
    last = "conv3" if f"{prefix}layer1.0.conv3.weight" in names else "conv2"
    return _RESNETS.get((last, tuple(blocks)))


def num_layers(names: dict[str, Tensor], layers: str) -> int:
    """One more than the largest number that follows ``layers`` in a name."""
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


class _Sizes:
    """First dimensions of parameters that must be there."""

    def __init__(self, weights: dict[str, Tensor], source: object) -> None:
        self._weights = weights
        self._source = source

    def __call__(self, name: str) -> int:
        if name not in self._weights:
            raise CheckpointError(f"{self._source}: lacks {name}; see {deciding_flag(name)}")
        shape = self._weights[name].shape
        if not shape or not shape[0]:
            raise CheckpointError(f"{self._source}: {name} has shape {list(shape)}; see {deciding_flag(name)}")
        return shape[0]


def _detector_of(weights: dict[str, Tensor], source: object) -> str:
    signs = {
        "deformable": "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",
        "conditional": "transformer.decoder.layers.0.sa_qcontent_proj.weight",
        "vanilla": "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    }
    for detr, name in signs.items():
        if name in weights:
            return detr
    raise CheckpointError(f"{source}: its decoder is none of --detr {', '.join(signs)}")


def _backbone_of(weights: dict[str, Tensor], hints: dict[str, Any], source: object) -> str:
    known = hints.get("backbone")
    if isinstance(known, str) and known.startswith("timm:"):
        return known
    backbone = resnet_of(weights, _BODY)
    if backbone is None:
        raise CheckpointError(
            f"{source}: its backbone is none of {', '.join(_RESNETS.values())}; if it is one of timm, say so by "
            "--backbone timm:NAME"
        )
    return backbone


def _points(outputs: int, samples: int, source: object) -> int:
    if samples < 1 or outputs % samples:
        raise CheckpointError(
            f"{source}: {outputs} attention weights a query are no multiple of levels times heads ({samples}); "
            "see --nheads and --num_feature_levels"
        )
    return outputs // samples
