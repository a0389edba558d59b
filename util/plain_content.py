"""Checks the content of a file: only plain tensors, and no more numbers than the file has room for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CLAIMS_PER_BYTE = 8
"""How often tensors may use the bytes of a file: layers share heads, and small constants are expanded."""
ROOM = 1 << 30
"""Bytes that any file may claim."""


def what_is_wrong(content: Any, file_size: int) -> str | None:
    """What is wrong with the unpickled content of a file of ``file_size`` bytes; None if nothing is wrong.

    A tensor with a stride of 0 stores one element and can claim any number, so a copy of it could take all memory. And
    with a storage that is larger than the file, torch would read the memory behind it.
    """
    claimed, stored = 0, {}
    for tensor in _tensors(content):
        kind = unusual_kind(tensor)
        if kind is not None:
            return f"it holds a {kind} tensor"
        claimed += tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        stored[storage._cdata] = storage.nbytes()
    if sum(stored.values()) > file_size:
        return f"its tensors need {sum(stored.values()):,} bytes and it has {file_size:,}"
    if claimed > CLAIMS_PER_BYTE * file_size + ROOM:
        return f"its tensors claim {claimed:,} bytes and it has {file_size:,}"
    return None


def unusual_kind(tensor: Tensor) -> str | None:
    """The kind of a tensor that is sparse, nested, quantized or not on the CPU; None for a usual one."""
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    return None if tensor.device.type == "cpu" else tensor.device.type


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested containers; visits each container once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set | argparse.Namespace) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, argparse.Namespace):
                value = vars(value)
            if isinstance(value, dict):
                waiting.extend(value.keys())
                value = value.values()
            waiting.extend(value)
