"""How many operations a piece of work sends to its device, each of them a kernel to launch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._inductor import config as inductor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

FUSED = "cpp_fused_"
"""What the kernels are called that torch.compile writes for a CPU."""

WITHOUT_WORK = frozenset(
    f"aten::{name}"
    for name in "empty empty_like empty_strided new_empty empty_permuted resize_ set_ lift_fresh _unsafe_view "
    "_local_scalar_dense result_type is_nonzero _nnpack_available".split()
)
"""Operations that allocate memory or look something up."""


def show_fused_kernels() -> None:
    """Let what is compiled from now on for a CPU show its kernels to the profiler."""
    inductor.cpp.enable_kernel_profile = True


def count_launches(work: Callable[[], object], device: torch.device) -> Counter[str]:
    """Names of the operations of ``work`` and how often each of them is launched.

    On a GPU these are its kernels. On a CPU they are the operations that PyTorch dispatches to it, but for views
    and allocations, and compiled kernels: about what would be launched on a GPU.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
    events = profiler.events()
    if device.type == "cuda":
        return Counter(event.name for event in events if event.device_type == DeviceType.CUDA)
    roots = [event for event in events if event.cpu_parent is None]
    return Counter(name for root in roots for name in _launched(root))


def _launched(event: Any) -> Iterator[str]:
    """The outermost operations in ``event`` that are more than a name for others."""
    if FUSED in event.name or (_operation(event.name) and not _is_composite(event.name)):
        if event.name not in WITHOUT_WORK and not _is_view(event.name):
            yield event.name
        return
    for child in event.cpu_children:
        yield from _launched(child)


@functools.cache
def _operation(name: str) -> list[Any]:
    """The overloads of an operation, ``namespace::name``; empty: it is none."""
    namespace, _, plain = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), plain, None) if plain.isidentifier() else None
    overloads = packet.overloads() if hasattr(packet, "overloads") else []
    found = [getattr(packet, overload) for overload in overloads]
    return [overload for overload in found if torch._C._dispatch_has_kernel(overload.name())]


@functools.cache
def _is_composite(name: str) -> bool:
    """Whether an operation does nothing but call others."""
    key = "CompositeImplicitAutograd"
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), key) for overload in _operation(name))


@functools.cache
def _is_view(name: str) -> bool:
    """Whether an operation returns its argument seen otherwise."""
    return all(overload.is_view for overload in _operation(name)) if _operation(name) else False
