"""How much arithmetic a piece of work has, and how long that takes at best."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import addmm_flop, flop_registry, sdpa_backward_flop, sdpa_flop

aten = torch.ops.aten
SIDE = 2048
"""Of the matrices whose product shows how fast the machine computes at best."""

FORMULAS = {
    **flop_registry,
    aten.addmm_: addmm_flop,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
"""PyTorch's, and what it leaves out of that which our code calls."""


class Arithmetic(TorchDispatchMode):
    """Counts the floating point operations of matrix products, convolutions and attention."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = FORMULAS.get(function.overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        return result


def large_matrix(device: torch.device) -> Tensor:
    """A factor of the product that :func:`at_best` knows the time of."""
    return torch.randn(SIDE, SIDE).to(device)


def at_best(operations: float, per_product: float) -> float:
    """The time of so many operations if one product of two large matrices takes ``per_product``."""
    return operations / (2 * SIDE**3) * per_product
