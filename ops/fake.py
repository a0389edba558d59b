"""Shapes and types of the operator's results, for meta tensors and tracing.

In Python and not in C++ like the operator: PyTorch takes a C++ form for one of tensors on a single device, and refuses
to trace a call whose levels stay on the CPU while the rest is on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def register() -> None:
    """Tell PyTorch, when the compiled library is loaded; another copy of this package may have done so."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("siamese_detr::ms_deform_attn", "Meta"):
        torch.library.register_fake("siamese_detr::ms_deform_attn", _forward)
        torch.library.register_fake("siamese_detr::ms_deform_attn_backward", _backward)


def _forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    _check_devices(value, sampling_locations=sampling_locations, attention_weights=attention_weights)
    _check_devices(value, cpu=True, spatial_shapes=spatial_shapes, level_start_index=level_start_index)
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


def _backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    results = [tensor.new_empty(tensor.shape) for tensor in (value, sampling_locations, attention_weights)]
    return results[0], results[1], results[2]


def _check_devices(value: Tensor, *, cpu: bool = False, **others: Tensor) -> None:
    """What no kernel sees: one meta tensor among others brings the call here. All else is checked when it runs."""
    for name, tensor in others.items():
        if tensor.device != value.device and not (cpu and tensor.is_cpu):
            wanted = f"{'the CPU or ' * cpu}{value.device}, the device of value"
            raise ValueError(f"{name}: expected to be on {wanted}, got {tensor.device}")
