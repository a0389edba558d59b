"""Multi-scale deformable attention, compiled against plain PyTorch: `benchmark.py msda`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from ops import ms_deform_attn, ms_deform_attn_reference
from ops.extension import has_kernels
from tools.clock import describe, milliseconds
from tools.memory import peak_megabytes
from util.errors import UserError

LEVELS = ((100, 134), (50, 67), (25, 33), (12, 16))  # of an 800 x 1066 image at strides 8, 16, 32, 64
HEADS, CHANNELS, POINTS = 8, 32, 4
MAX_OFFSET = 3.0  # cells around a query's own place
DECODER_QUERIES = 300
FORMS = {"compiled": ms_deform_attn, "PyTorch": ms_deform_attn_reference}


def benchmark_msda(rounds: int, dtype: torch.dtype, batch_size: int, device: torch.device) -> None:
    """Print milliseconds of both forms, forward and backward, in the encoder and the decoder, and what they allocate.

    Raises:
        UserError: there is no compiled operator to measure.
    """
    if not has_kernels(device.type):  # which says why
        raise UserError("nothing to compare: the operator is not compiled")
    print(f"{describe(device)}, {batch_size} x {dtype}, medians of {rounds} rounds in turn")
    print(f"{'':<18}{'compiled':>12}{'PyTorch':>12}{'ratio':>8}")
    for shape in ("encoder", "decoder"):
        arguments = make_arguments(shape, dtype, batch_size, device)
        times = measure(arguments, rounds)
        for part in ("forward", "backward"):
            fast, slow = (median(times[form, part]) for form in FORMS)
            print(f"{shape + ' ' + part:<18}{fast:>9.2f} ms{slow:>9.2f} ms{slow / fast:>8.1f}")
        fast, slow = (extra_memory(form, shape, dtype, batch_size, device) for form in FORMS)
        print(f"{shape + ' memory':<18}{fast:>9.0f} MB{slow:>9.0f} MB{slow / max(fast, 1e-9):>8.1f}")


def make_arguments(shape: str, dtype: torch.dtype, batch_size: int, device: torch.device) -> list[Tensor]:
    """Arguments of the operator; queries of the encoder are the positions themselves."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS)
    areas = shapes.prod(1)
    starts = areas.cumsum(0) - areas
    if shape == "encoder":
        centres = torch.cat([_cell_centres(height, width) for height, width in LEVELS])
    else:
        centres = torch.rand(DECODER_QUERIES, 2, generator=generator)
    sampling = (batch_size, len(centres), HEADS, len(LEVELS), POINTS)
    offsets = (torch.rand(*sampling, 2, generator=generator) * 2 - 1) * MAX_OFFSET / shapes.flip(1)[:, None]
    locations = centres[None, :, None, None, None] + offsets
    weights = torch.rand(sampling, generator=generator).flatten(-2).softmax(-1).view(sampling)
    value = torch.randn(batch_size, int(areas.sum()), HEADS, CHANNELS, generator=generator)
    tensors = [tensor.to(device, dtype).requires_grad_() for tensor in (value, locations, weights)]
    return [tensors[0], shapes, starts, *tensors[1:]]


def _cell_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def measure(arguments: list[Tensor], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every form and pass, the forms taking turns; the first round warms up and does not count."""
    device = arguments[0].device
    times: dict[tuple[str, str], list[float]] = {}
    for count in range(rounds + 1):
        for name, form in FORMS.items():
            began = milliseconds(device)
            output = form(*arguments)
            between = milliseconds(device)
            output.backward(torch.ones_like(output))
            ended = milliseconds(device)
            for tensor in arguments:
                tensor.grad = None
            if count:
                times.setdefault((name, "forward"), []).append(between - began)
                times.setdefault((name, "backward"), []).append(ended - between)
    return times


def extra_memory(form: str, shape: str, dtype: torch.dtype, batch_size: int, device: torch.device) -> float:
    """Megabytes that a forward and backward pass adds to the peak of a fresh process beside its results."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_growth, (form, shape, dtype, batch_size, device))


def _peak_growth(form: str, shape: str, dtype: torch.dtype, batch_size: int, device: torch.device) -> float:
    arguments = make_arguments(shape, dtype, batch_size, device)
    has_kernels(device.type)
    run: Callable[..., Tensor] = FORMS[form]
    before = peak_megabytes(device)
    output = run(*arguments)
    output.backward(torch.ones_like(output))
    results = [output, *(tensor.grad for tensor in arguments if tensor.grad is not None)]
    return peak_megabytes(device) - before - sum(tensor.nbytes for tensor in results) / 2**20
