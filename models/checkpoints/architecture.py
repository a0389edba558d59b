"""Infers the flags of the architecture from a state dict."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import Tensor

from models import DETECTORS
from models.checkpoints.load import deciding_flag
from models.checkpoints.renaming import num_layers
from util.errors import CheckpointError

_BODY = "backbone.0.body."
_RESNETS = {
    ("conv2", (2, 2, 2, 2)): "resnet18",
    ("conv2", (3, 4, 6, 3)): "resnet34",
    ("conv3", (3, 4, 6, 3)): "resnet50",
    ("conv3", (3, 4, 23, 3)): "resnet101",
}
"""(last convolution of a block, number of blocks per stage) -> name."""

ASSUMED = {"nheads": 8, "dilation": False, "num_queries": 300}
"""The papers' values of flags that weights do not tell; ``num_queries`` is for two stages."""


def infer_architecture(
    weights: dict[str, Tensor], hints: dict[str, Any], source: object
) -> tuple[dict[str, Any], list[str]]:
    """Arguments that build the detector of a state dict.

    Args:
        weights: under the names of this project.
        hints: arguments from elsewhere, used if the weights do not tell them.
        source: the file, for messages.

    Returns:
        The arguments, and the names of those that neither weights nor hints tell (see :data:`ASSUMED`).

    Raises:
        CheckpointError: a needed parameter is missing, or its architecture is not supported; names the flag.
    """
    try:
        return _infer(weights, hints)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _infer(weights: dict[str, Tensor], hints: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """See :func:`infer_architecture`; errors do not name the file."""
    size = _Sizes(weights)
    encoder, decoder = "transformer.encoder.layers", "transformer.decoder.layers"
    detr = detector_of(weights)
    if detr is None:
        raise CheckpointError(f"its decoder is not one of --detr {', '.join(DETECTORS)}")
    told = {
        "detr": detr,
        "backbone": _backbone_of(weights, hints),
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in weights else "sine",
        "enc_layers": num_layers(weights, encoder),
        "dec_layers": num_layers(weights, decoder),
        "hidden_dim": size(f"{encoder}.0.norm1.weight"),
        "dim_feedforward": size(f"{encoder}.0.linear1.bias"),
        "feature_stride": hints.get("feature_stride"),
    }
    record = DETECTORS[detr]
    names = (*ASSUMED, *(flag.name for flag in record.flags))
    known = ASSUMED | {name: hints[name] for name in names if name in hints}
    own = record.infer(weights, size, known)
    if "num_queries" not in own:
        told["num_queries"] = size("query_embed.weight")
    told |= {name: value for name, value in own.items() if value is not None}
    assumed = [name for name in ASSUMED if name not in told and name not in hints]
    return known | told, assumed


def detector_of(names: Collection[str]) -> str | None:
    """``--detr`` of the detector whose parameters have these names; None: not recognised."""
    fitting = [name for name, record in DETECTORS.items() if all(sign in names for sign in record.signs)]
    return max(fitting, key=lambda name: len(DETECTORS[name].signs), default=None)


def resnet_of(names: dict[str, Tensor], prefix: str = "") -> str | None:
    """The ResNet whose parameters have these names after ``prefix``; None: not a ResNet."""
    stages = [re.compile(rf"{re.escape(prefix)}layer{n}\.(\d+)\.") for n in range(1, 5)]
    blocks = [len({match[1] for name in names if (match := pattern.match(name))}) for pattern in stages]
    last = "conv3" if f"{prefix}layer1.0.conv3.weight" in names else "conv2"
    return _RESNETS.get((last, tuple(blocks)))


class _Sizes:
    """First dimensions of required parameters."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    def __call__(self, name: str) -> int:
        if name not in self._weights:
            raise CheckpointError(f"lacks {name}; see {deciding_flag(name)}")
        shape = self._weights[name].shape
        if not shape or not shape[0]:
            raise CheckpointError(f"{name} has shape {list(shape)}; see {deciding_flag(name)}")
        return shape[0]


def _backbone_of(weights: dict[str, Tensor], hints: dict[str, Any]) -> str:
    known = hints.get("backbone")
    if isinstance(known, str) and known.startswith("timm:"):
        return known
    backbone = resnet_of(weights, _BODY)
    if backbone is None:
        raise CheckpointError(
            f"its backbone is not one of {', '.join(_RESNETS.values())}; for a backbone of timm pass "
            "--backbone timm:NAME"
        )
    return backbone
