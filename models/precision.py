"""``--amp``: in which type a model multiplies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from models.backbone import Backbone
from util.precision import AMP_TYPES, BACKBONE_ALONE


@contextlib.contextmanager
def computing(model: nn.Module, device: torch.device, amp: str) -> Iterator[None]:
    """Context in which ``model``, on ``device``, computes with precision ``amp``, one of :data:`AMP_TYPES`."""
    dtype = AMP_TYPES[amp]
    if amp != BACKBONE_ALONE:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
        return
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    try:
        for backbone in backbones:
            backbone.amp_type = dtype
        yield
    finally:
        for backbone in backbones:
            backbone.amp_type = None
