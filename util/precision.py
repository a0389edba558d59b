"""Mixed precision by name."""

from __future__ import annotations

import torch

AMP_TYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""``--amp`` -> type of matrix products; None: float32."""


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Context in which a model computes with precision ``amp``, one of :data:`AMP_TYPES`."""
    return torch.autocast(device.type, AMP_TYPES[amp], enabled=amp != "none")
