"""Shapes and types of the operator's results, for meta tensors and tracing.

In Python, not in C++ like the operator: PyTorch expects that all tensors of a C++ form are on one device, so it would
refuse to trace a call with the levels on the CPU and the rest on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def register() -> None:
    """Register with PyTorch, after the compiled library is loaded; another copy of this package may have done so."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("siamese_detr::ms_deform_attn", "Meta"):
        torch.library.register_fake("siamese_detr::ms_deform_attn", _forward)
        torch.library.register_fake("siamese_detr::ms_deform_attn_backward", _backward)


def _forward(value: Tensor, *others: Tensor) -> Tensor:
    return value.new_empty(_check(value, *others))


def _backward(grad_output: Tensor, value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check_like(value, "grad_output", grad_output, _check(value, *others))
    _, _, sampling_locations, attention_weights = others
    return value.new_empty(value.shape), torch.empty_like(sampling_locations), torch.empty_like(attention_weights)


def _check(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[int, int, int]:
    """The checks of ``src/check.cpp``, without those of the levels' values, which are unknown; returns output sizes.

    The kernels do not check for this function: one meta tensor among the arguments is enough to call it instead.
    """
    if value.dim() != 4 or not value.is_floating_point():
        got = f"{list(value.shape)} of {value.dtype}"
        raise ValueError(f"value: expected floating point [batch, positions, heads, channels], got {got}")
    if sampling_locations.dim() != 6:
        got = list(sampling_locations.shape)
        raise ValueError(f"sampling_locations: expected [batch, queries, heads, levels, points, 2], got {got}")
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], spatial_shapes.shape[0], sampling_locations.shape[4]
    sizes = (batch, queries, heads, levels, points)
    _check_integers(value, "spatial_shapes", spatial_shapes, (levels, 2))
    _check_integers(value, "level_start_index", level_start_index, (levels,))
    _check_like(value, "sampling_locations", sampling_locations, (*sizes, 2))
    _check_like(value, "attention_weights", attention_weights, sizes)
    return batch, queries, heads * channels


def _check_like(value: Tensor, name: str, tensor: Tensor, sizes: tuple[int, ...]) -> None:
    if tensor.device != value.device:
        raise ValueError(f"{name}: expected to be on {value.device}, the device of value, got {tensor.device}")
    if tensor.dtype != value.dtype:
        raise ValueError(f"{name}: expected {value.dtype}, the dtype of value, got {tensor.dtype}")
    _check_sizes(name, tensor, sizes)


def _check_integers(value: Tensor, name: str, tensor: Tensor, sizes: tuple[int, ...]) -> None:
    if tensor.device != value.device and not tensor.is_cpu:
        wanted = f"the CPU or on {value.device}, the device of value"
        raise ValueError(f"{name}: expected to be on {wanted}, got {tensor.device}")
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: expected int64, got {tensor.dtype}")
    _check_sizes(name, tensor, sizes)


def _check_sizes(name: str, tensor: Tensor, sizes: tuple[int, ...]) -> None:
    if tensor.shape != sizes:
        raise ValueError(f"{name}: expected {list(sizes)}, got {list(tensor.shape)}")
