"""Loads weights of backbones: SwAV, MoCo, torchvision, timm, plain state dicts, and from whole detectors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from models.backbone import TIMM, Backbone
from models.checkpoints.files import find_state_dict, read_content, read_folder
from models.checkpoints.hf_names import is_hugging_face, to_public
from models.checkpoints.renaming import Renaming
from models.published_weights import AUTO, NAMES, NONE, Unavailable, fetch, fetch_timm
from util import distributed
from util.errors import CheckpointError
from util.load_report import LoadReport
from util.logger import say

PLACES = ("", "backbone.0.body.", "backbone.", "encoder_q.")
"""Prefixes of a body's names: in a file of its own, in a detector, in the authors' Siamese DETR, in MoCo."""


def start_backbone(backbone: Backbone, weights: str, name: str) -> LoadReport | None:
    """Load what ``--backbone_weights`` says into a backbone; None: it stays random. Collective.

    Args:
        weights: a file, or one of the words of :mod:`models.published_weights`.
        name: ``--backbone``.

    Raises:
        CheckpointError: as :func:`load_backbone_weights`.
        Unavailable: published weights are wanted by name and cannot be had.
    """
    if weights == NONE:
        return None
    if weights != AUTO:
        return _start(backbone, weights, name)
    report, reason = None, ""
    try:
        report = _start(backbone, "imagenet", name)
    except Unavailable as error:
        reason = str(error)
    reason = next(filter(None, distributed.all_gather_object(reason)), "")
    if reason:
        say(f"warning: everything starts random, and learns little from few images. {reason}")
    return None if reason else report


def _start(backbone: Backbone, weights: str, name: str) -> LoadReport:
    if weights in NAMES and name.startswith(TIMM):
        if weights != "imagenet":
            raise Unavailable(f"--backbone_weights {weights}: there are none for --backbone {name}; use imagenet")
        return load_body(backbone, fetch_timm(name), f"timm's weights of {name.removeprefix(TIMM)}")
    return load_backbone_weights(backbone, fetch(weights, name) if weights in NAMES else weights)


def load_backbone_weights(backbone: Backbone, path: str | Path) -> LoadReport:
    """Load a weights file into ``backbone``; every tensor of its body gets a value.

    Args:
        backbone: receives the weights.
        path: a file with the body's names (``layer1.0.conv1.weight``), perhaps with the prefixes ``module.`` (SwAV) and
            one of :data:`PLACES`, bare or under ``state_dict`` or ``model``; or a detector of Hugging Face, file or
            folder. The file may also hold heads, prototypes and Transformers.

    Returns:
        ``loaded``: names of the backbone; ``new``: none; ``left_over``: every unused key of the file. That includes
        ``num_batches_tracked``, which frozen batch norms do not have.

    Raises:
        CheckpointError: unreadable (see :mod:`models.checkpoints.files`), nothing in it fits, or a tensor of the body
            is missing or has another shape; the message names the file and the tensor.
    """
    path = Path(path)
    if path.is_dir():
        weights, others = read_folder(path), {}
    else:
        weights, others = find_state_dict(read_content(path), path)
    report = load_body(backbone, weights, path)
    report.left_over += others
    return report


def load_body(backbone: Backbone, weights: dict[str, Tensor], path: str | Path) -> LoadReport:
    """Load tensors by name, however wrapped; ``path`` is where they come from. See :func:`load_backbone_weights`."""
    renaming = Renaming(weights)
    renaming.unwrap()
    if is_hugging_face(renaming.weights.keys()):
        to_public(renaming)
    weights = renaming.weights
    own = backbone.body.state_dict()
    source = {_own_name(name, own): name for name in weights}
    if not source.keys() & own.keys():
        raise CheckpointError(
            f"{path}: none of its {len(weights)} tensors ({next(iter(weights), 'it is empty')}, ...) belongs to this "
            f"backbone ({next(iter(own))}, ...); choose another file or another --backbone"
        )
    for name, value in own.items():
        if name not in source:
            raise CheckpointError(f"{path}: lacks {name}; if it is another backbone, change --backbone")
        found = weights[source[name]].shape
        if found != value.shape:
            raise CheckpointError(
                f"{path}: {renaming.in_file([source[name]])[0]} has shape {list(found)}, the backbone's {name} has "
                f"{list(value.shape)}; if it is another backbone, change --backbone"
            )
        if value.is_floating_point() and not weights[source[name]].is_floating_point():
            kind = weights[source[name]].dtype
            raise CheckpointError(
                f"{path}: {renaming.in_file([source[name]])[0]} holds {kind} values, not floating-point numbers"
            )
    backbone.body.load_state_dict({name: weights[source[name]] for name in own})
    used = {source[name] for name in own}
    return LoadReport(
        loaded=[f"body.{name}" for name in own],
        new=[],
        left_over=renaming.in_file(name for name in weights if name not in used),
    )


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    """The body's name for a tensor of the file; ``name`` itself if the body has no such tensor.

    The published full models of timm have ``stages.0.x``; those that return features have ``stages_0.x`` instead, or
    hold the full model under ``model``.
    """
    for place in PLACES:
        if name.startswith(place):
            inner = name.removeprefix(place)
            for spelling in (inner, inner.replace(".", "_", 1), f"model.{inner}"):
                if spelling in own:
                    return spelling
    return name
