"""``--compile``: the arithmetic of a training step as a few graphs instead of thousands of small operations.

``torch.compile`` fuses what stands between matrix products. The matching goes through the host and stays outside, and
so does what processes exchange. Sizes are symbolic from the first step on: one graph serves all of them, so that the
first steps compile all there is, and a resumed run computes with the same graphs, whichever size it meets first.

``--cuda_graphs``: a GPU records the graphs of backbone, encoder, decoder and heads, once for each size of the batches,
and replays each as a single launch. The losses keep their launches, for their sizes change with the objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config as symbolic

from models.fast.frozen_backbone import frozen_parts
from util.errors import UserError

HOST_READERS = ["siamese_detr::ms_deform_attn", "siamese_detr::ms_deform_attn_backward"]
"""Operators that read the sizes of levels on the host, while a recorded graph reads the GPU's memory alone."""


def compile_steps(method: nn.Module, backend: str = "inductor", *, cuda_graphs: bool = False) -> None:
    """Compile the parts of a pretext task or of a :class:`models.supervised.SupervisedDETR`, in place.

    Parameters and their names stay as they are. Compilation itself comes with the first calls.

    Args:
        backend: of torch.compile; "aot_eager" makes the same graphs and runs them operation by operation.
        cuda_graphs: record :func:`parts_of_fixed_size` in training; every step must then call :func:`begin_step`.

    Raises:
        UserError: torch.compile does not work here, for want of a compiler as a rule.
    """
    detector, criterion = method.detector, method.criterion
    _see_that_it_works(next(detector.parameters()).device, backend)
    symbolic.use_duck_shape = False  # or height and width would be one symbol where the first images are square
    if cuda_graphs:
        _leave_out_of_graphs(HOST_READERS)
    for module, name in parts_of_fixed_size(method):
        fused = torch.compile(getattr(module, name), dynamic=True, backend=backend)
        if cuda_graphs:
            recorded = torch.compile(getattr(module, name), dynamic=True, backend=backend, mode="reduce-overhead")
            fused = _recorded_in_training(detector, recorded, fused)
        setattr(module, name, fused)
    for module, name in ((criterion.matcher, "pair_costs"), (criterion, "terms"), (criterion, "error_rates")):
        setattr(module, name, torch.compile(getattr(module, name), dynamic=True, backend=backend))


def _leave_out_of_graphs(operators: list[str]) -> None:
    """Let graphs end before these operators and begin after them, where PyTorch can divide a graph."""
    from torch._inductor import config  # takes seconds

    if hasattr(config, "custom_should_partition_ops"):
        config.custom_should_partition_ops = operators


def parts_of_fixed_size(method: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules and the names of their functions whose sizes follow from those of the batch alone."""
    parts = [(module, "forward") for module in frozen_parts(method)]
    return [*parts, (method.detector, "features"), (method.detector, "ask")]


def begin_step() -> None:
    """From here on CUDA graphs may overwrite what they returned in the last step."""
    torch.compiler.cudagraph_mark_step_begin()


def _recorded_in_training(
    detector: nn.Module, recorded: Callable[..., Any], fused: Callable[..., Any]
) -> Callable[..., Any]:
    """Images to evaluate have too many sizes to record each."""
    return lambda *args: (recorded if detector.training else fused)(*args)


def _see_that_it_works(device: torch.device, backend: str) -> None:
    """Compile something trivial before hours are spent on anything else."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compilers beneath raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--compile: torch.compile does not work here ({lines[0]}); leave --compile out") from None
