"""Multi-scale deformable attention: a compiled operator, its module, and the same in plain PyTorch."""

from .functional import ms_deform_attn
from .module import MSDeformAttn
from .reference import ms_deform_attn_reference

__all__ = ["MSDeformAttn", "ms_deform_attn", "ms_deform_attn_reference"]
