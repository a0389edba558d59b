"""Mixed precision by name."""

from __future__ import annotations

import torch

BACKBONE_ALONE = "bf16_backbone"

AMP_TYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16, BACKBONE_ALONE: torch.bfloat16}
"""``--amp`` -> type of matrix products, of the backbone alone or of the whole model; None: float32."""

AMP_HELP = "mixed precision; bf16_backbone: in the backbone alone, for CPUs with bf16; default: none"


def processor_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32; False also where PyTorch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
