"""Loads a state dict into a detector: checks every name and shape, and reports what became of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import DETECTORS
from models.checkpoints.origin import Origin
from util.errors import CheckpointError, UserError
from util.load_report import LoadReport

_DECIDING_FLAGS = (
    (r"query_embed", "--num_queries, --hidden_dim or --detr"),
    (r"transformer\.encoder\.layers", "--enc_layers, --dim_feedforward, --hidden_dim or --detr"),
    (r"transformer\.decoder\.layers", "--dec_layers, --dim_feedforward, --hidden_dim or --detr"),
    (r"transformer", "--detr or --hidden_dim"),
    (r"input_proj", "--backbone, --feature_stride or --hidden_dim"),
    (r"backbone\.1", "--position_embedding or --hidden_dim"),
    (r"backbone", "--backbone"),
    (r"bbox_embed", "--hidden_dim, --dec_layers or --detr"),
    (r"class_embed", "--hidden_dim, --dec_layers or --detr"),
)
"""Flags that decide a parameter's shape, by the beginning of its name; the detectors' records come first."""

CLASS_HEADS = ("class_embed.", "transformer.decoder.class_embed.")
"""Beginnings of the names of class heads; the decoder of a two-stage detector has them, too."""

QUERIES = "query_embed.weight"


def deciding_flag(name: str) -> str:
    """The flags that decide whether the parameter ``name`` exists, and its shape."""
    own = (pair for record in DETECTORS.values() for pair in record.deciding_flags)
    return next((flags for beginning, flags in (*own, *_DECIDING_FLAGS) if re.match(beginning, name)), "--detr")


def load_detector(
    detector: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    *,
    keep_class_head: bool,
    new_parts: Sequence[str] = (),
    resize_queries: bool = False,
) -> LoadReport:
    """Load a detector's state dict into ``detector``.

    Args:
        detector: receives the weights.
        weights: ``{name: tensor}`` under the detector's own names.
        source: the file, for messages.
        keep_class_head: False does not load :data:`CLASS_HEADS` (other categories); they keep their initial values.
        new_parts: further modules that are not loaded, such as "bbox_embed" or "transformer.encoder".
        resize_queries: a detector with fewer queries gets the first of those in ``weights``; with more queries, the
            additional ones keep their initial values.

    Returns:
        What was loaded. If one parameter has several names (such as shared heads) with different tensors in the file,
        the last is loaded, and the others are left over.

    Raises:
        CheckpointError: a parameter is missing, unknown or has another shape; names the flags that decide it.
        UserError: the detector has none of ``new_parts``.
    """
    own = detector.state_dict(keep_vars=True)
    skipped = _names_within(own, new_parts)
    if not keep_class_head:
        skipped += [name for name in own if name.startswith(CLASS_HEADS) and name not in skipped]
    expected = {name: value for name, value in own.items() if name not in skipped}
    notes = []
    if resize_queries and QUERIES in expected and QUERIES in weights:
        weights, note = _resized_queries(weights, expected[QUERIES].detach())
        notes = [note] if note else []
    check_weights(expected, weights, source, skipped)
    left_over = [name for name in weights if name not in expected]
    superseded = _superseded(expected, weights)
    detector.load_state_dict({name: weights[name] for name in expected}, strict=False)
    return LoadReport(
        loaded=[name for name in expected if name not in superseded],
        new=skipped,
        left_over=left_over + superseded,
        notes=notes,
    )


def load_origin(
    detector: nn.Module, origin: Origin, *, keep_class_head: bool, new_parts: Sequence[str] = ()
) -> LoadReport:
    """Load the checkpoint that a run starts from; see :func:`load_detector` and :func:`weights_to_use`.

    Returns:
        What was loaded; left-over tensors have their names in the file.
    """
    report = load_detector(
        detector,
        weights_to_use(origin.content),
        origin.path,
        keep_class_head=keep_class_head,
        new_parts=new_parts,
        resize_queries=not origin.resumes,
    )
    if origin.content.get("ema") is not None and not origin.resumes:
        report.notes.append("averaged weights (--ema)")
    if origin.foreign is None:
        return report
    report.left_over = origin.foreign.in_file(report.left_over) + origin.foreign.left_over
    report.notes.append(f"recognised as {origin.foreign.kind}")
    if origin.foreign.assumed:
        flags = ", ".join(f"--{name} {origin.content['args'][name]}" for name in origin.foreign.assumed)
        report.notes.append(f"the file does not say, so as in the paper: {flags}")
    return report


def weights_to_use(content: dict[str, Any]) -> dict[str, Tensor]:
    """The detector of a checkpoint for whoever does not go on training it: averaged (``--ema``), where it has that."""
    return content["model"] if content.get("ema") is None else content["ema"]


def check_weights(
    expected: dict[str, Tensor], weights: dict[str, Tensor], source: str | Path, skipped: Collection[str] = ()
) -> None:
    """Compare names, shapes and types; ignores unexpected class heads and names in ``skipped``.

    Raises:
        CheckpointError: they differ; names the flags that decide it.
    """
    for name, value in expected.items():
        if name not in weights:
            raise CheckpointError(f"{source}: lacks {name}; another architecture: see {deciding_flag(name)}")
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(weights[name].shape)}, "
                f"this detector has {list(value.shape)}; see {deciding_flag(name)}"
            )
        if value.is_floating_point() and not weights[name].is_floating_point():
            raise CheckpointError(f"{source}: {name} holds {weights[name].dtype} values, not floating-point numbers")
    for name in weights:
        if not (name in expected or name in skipped or name.startswith(CLASS_HEADS)):
            raise CheckpointError(
                f"{source}: holds {name}, which this detector does not have; see {deciding_flag(name)}"
            )


def _names_within(own: dict[str, Tensor], parts: Sequence[str]) -> list[str]:
    """All names of the parameters and buffers within these modules."""
    chosen = set()
    for part in parts:
        within = {id(value) for name, value in own.items() if f"{name}.".startswith(f"{part}.")}
        if not within:
            known = ", ".join(sorted({name.split(".")[0] for name in own}))
            raise UserError(f"--new_parts {part}: not a part of this detector; it has {known} and their parts")
        chosen |= within
    return [name for name, value in own.items() if id(value) in chosen]


def num_class_logits(weights: dict[str, Tensor]) -> int | None:
    """Outputs of the class head in a detector's state dict; None: it has no class head."""
    bias = weights.get("class_embed.bias", weights.get("class_embed.0.bias"))
    return None if bias is None or not bias.ndim else len(bias)


def _resized_queries(weights: dict[str, Tensor], own: Tensor) -> tuple[dict[str, Tensor], str | None]:
    """``weights`` with the number of queries of ``own``, and a note of what was done."""
    found = weights[QUERIES]
    if found.shape[1:] != own.shape[1:] or len(found) == len(own):
        return weights, None
    kept = min(len(found), len(own))
    queries = torch.cat([found[:kept].to(own), own[kept:]])
    done = "the others are dropped" if kept < len(found) else f"{len(own) - kept} are new"
    return {**weights, QUERIES: queries}, f"queries: the first {kept} of the file's {len(found)} are kept, {done}"


def _superseded(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Names whose parameter also has a later name, with another value in ``weights``."""
    names = defaultdict(list)
    for name, parameter in own.items():
        names[id(parameter)].append(name)
    return [
        name
        for aliases in names.values()
        for name in aliases[:-1]
        if not torch.equal(weights[name], weights[aliases[-1]])
    ]
