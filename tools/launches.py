"""How many operations a piece of work sends to its device, each of them a kernel to launch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile, record_function

from models.fast.compiled import parts_of_fixed_size

FUSED = "cpp_fused_"
"""What the kernels are called that torch.compile writes for a CPU."""

REPLAYED = "replayed"
"""Label of what a GPU would replay as one launch; see :func:`label_replays`."""

REPLAY = ("copies of its inputs", "graph")
"""What a replay launches."""

TO_A_GPU = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
"""How the calls begin that launch something on a GPU."""

WITHOUT_WORK = frozenset(
    f"aten::{name}"
    for name in "empty empty_like empty_strided new_empty empty_permuted resize_ set_ lift_fresh _unsafe_view "
    "_local_scalar_dense result_type is_nonzero _nnpack_available".split()
)
"""Operations that allocate memory or look something up."""


def show_fused_kernels() -> None:
    """Let what is compiled from now on for a CPU show its kernels to the profiler."""
    inductor.cpp.enable_kernel_profile = True


def label_replays(method: nn.Module) -> None:
    """Let what ``--cuda_graphs`` would record count as replayed on a CPU, which records nothing."""
    for module, name in parts_of_fixed_size(method):
        setattr(module, name, _labelled(getattr(module, name)))


def _labelled(part: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with record_function(REPLAYED):
            return part(*args)

    return call


def count_launches(work: Callable[[], object], device: torch.device) -> Counter[str]:
    """Names of the operations of ``work`` and how often each of them is launched.

    On a GPU these are the calls that launch kernels, copies and recorded graphs. On a CPU they are the operations that
    PyTorch dispatches to it, but for views and allocations, and compiled kernels: about what would be launched on a
    GPU. What is labelled as replayed, and its gradient, counts as a replay.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
    events = profiler.events()
    if device.type == "cuda":
        return Counter(event.name for event in events if event.name.startswith(TO_A_GPU))
    replayed = {event.sequence_nr for event in events if event.name == "CompiledFunction" and _is_replayed(event)}
    roots = [event for event in events if event.cpu_parent is None]
    return Counter(name for root in roots for name in _launched(root, replayed))


def _is_replayed(event: Any) -> bool:
    while event is not None and event.name != REPLAYED:
        event = event.cpu_parent
    return event is not None


def _launched(event: Any, replayed: Collection[int]) -> Iterator[str]:
    """The outermost operations in ``event`` that are more than a name for others.

    Args:
        replayed: numbers of the autograd functions whose gradient is replayed.
    """
    if event.name == REPLAYED or (event.name == "CompiledFunctionBackward" and event.sequence_nr in replayed):
        yield from REPLAY
    elif FUSED in event.name or (_operation(event.name) and not _is_composite(event.name)):
        if event.name not in WITHOUT_WORK and not _is_view(event.name):
            yield event.name
    else:
        for child in event.cpu_children:
            yield from _launched(child, replayed)


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
