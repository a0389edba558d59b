"""Published weights of backbones: SwAV, torchvision, timm and plain state dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models.backbone import Backbone
from util.checkpoint import load_file
from util.errors import CheckpointError
from util.load_report import LoadReport

CONTAINERS = ("state_dict", "model")
"""Keys under which files hold the weights beside other things."""

WRAPPER = "module."
"""What DistributedDataParallel puts before every name; SwAV's files have it."""


def load_backbone_weights(backbone: Backbone, path: str | Path) -> LoadReport:
    """Load a weights file into ``backbone``; every tensor of its body gets a value.

    Args:
        backbone: receives the weights.
        path: a file of ``torch.save`` with the body's names (``layer1.0.conv1.weight``), each perhaps after
            ``module.``, bare or under ``state_dict`` or ``model``. Heads and prototypes may be there, too.

    Returns:
        ``loaded``: names of the backbone; ``new``: none; ``left_over``: every key of the file without a use,
        counters of batches (``num_batches_tracked``) included, which frozen batch norms do not have.

    Raises:
        CheckpointError: unreadable (see :func:`util.checkpoint.load_file`), nothing in it fits, or a tensor of
            the body is missing or of another shape; the message names the file and the tensor.
    """
    weights, others = _find_weights(load_file(path), path)
    own = backbone.body.state_dict()
    source = {_own_name(name, own): name for name in weights}
    if not source.keys() & own.keys():
        raise CheckpointError(
            f"{path}: none of its {len(weights)} tensors ({next(iter(weights), 'it is empty')}, ...) belongs to this "
            f"backbone ({next(iter(own))}, ...): another file, or another --backbone"
        )
    for name, value in own.items():
        if name not in source:
            raise CheckpointError(f"{path}: lacks {name}: weights of another backbone? see --backbone")
        found = weights[source[name]].shape
        if found != value.shape:
            raise CheckpointError(
                f"{path}: {source[name]} has shape {list(found)}, the backbone's {name} has {list(value.shape)}: "
                "weights of another backbone? see --backbone"
            )
    backbone.body.load_state_dict({name: weights[source[name]] for name in own})
    used = {source[name] for name in own}
    return LoadReport(
        loaded=[f"body.{name}" for name in own],
        new=[],
        left_over=[name for name in weights if name not in used] + others,
    )


def _find_weights(content: Any, path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a file's content, ``{name: tensor}``, and the keys of what lies beside and between."""
    others = []
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            others += [str(key) for key in content if key != container]
            content = content[container]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not the weights of a backbone by name")
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return weights, others + [str(key) for key, value in content.items() if not isinstance(value, Tensor)]


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    """The body's name of a file's tensor; a name that the body has not if it has none.

    timm's models that return features have ``stages_0.x`` where the published full model has ``stages.0.x``, or
    are the full model under ``model``.
    """
    plain = name.removeprefix(WRAPPER)
    spellings = (plain, plain.replace(".", "_", 1), f"model.{plain}")
    return next((spelling for spelling in spellings if spelling in own), plain)
