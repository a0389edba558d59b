"""The compiled operator against grid_sample in float64, and its place in PyTorch."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensor, FakeTensorMode

from ops import ms_deform_attn, ms_deform_attn_reference
from ops.extension import load
from tests.devices import DEVICES, needs_gpu
from tests.ops.cases import SHAPES, as_double, random_arguments

ROOT = Path(__file__).resolve().parents[2]
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}
on_all_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    assert load() is None, "the compiled operator is what is tested here"


def op(*arguments: torch.Tensor) -> torch.Tensor:
    return torch.ops.siamese_detr.ms_deform_attn(*arguments)


def gradients(function, arguments, grad_output):
    """Gradients of value, locations and weights."""
    leaves = [arguments[index].detach().clone().requires_grad_() for index in (0, 3, 4)]
    output = function(leaves[0], *arguments[1:3], *leaves[1:])
    return torch.autograd.grad(output, leaves, grad_output)


def assert_close(actual, expected, dtype, scale):
    """Within the dtype's share of the terms that were added up; 16 bits: two units in the last place."""
    if dtype in RELATIVE:
        assert ((actual.cpu().double() - expected).abs() <= RELATIVE[dtype] * scale).all()
    else:
        unit = torch.finfo(dtype).eps * expected.abs().clamp(min=torch.finfo(dtype).tiny)
        assert ((actual.cpu().double() - expected).abs() <= 2 * unit).all()


def one_by_one(value, spatial_shapes, starts, locations, weights):
    """Equation 3 read aloud: a loop over everything, bilinear by hand, for a comparison without grid_sample."""
    batch, queries, heads, levels, points, _ = locations.shape
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    for b, q, m, level, p in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads, levels, points))).tolist():
        height, width = spatial_shapes[level].tolist()
        x, y = (locations[b, q, m, level, p] * torch.tensor([width, height])).sub(0.5).tolist()
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                at = int(starts[level]) + row * width + column
                output[b, q, m] += share * weights[b, q, m, level, p] * value[b, at, m]
    return output.flatten(2)


def test_the_reference_is_the_equation():
    arguments = random_arguments(batch=1, queries=3, points=2)
    torch.testing.assert_close(ms_deform_attn_reference(*arguments), one_by_one(*arguments), rtol=1e-12, atol=1e-12)


@on_all_devices
@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 3),
    queries=st.integers(0, 70),
    heads=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 4, 8, 12, 16, 31, 32, 48, 64, 100]),
    levels=st.integers(1, 4),
    points=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_all_sizes_and_types(device, batch, queries, heads, channels, levels, points, dtype, seed):
    sizes = {"batch": batch, "queries": queries, "heads": heads, "channels": channels, "points": points}
    arguments = random_arguments(**sizes, shapes=SHAPES[:levels], dtype=dtype, device=device, seed=seed)
    exact = as_double(arguments)
    output = op(*arguments)
    assert (output.dtype, output.device.type) == (dtype, device)
    assert output.shape == (batch, queries, heads * channels)
    # errors are relative to what is summed up: near zero, rounding of the terms is what remains
    magnitudes = [exact[0].abs(), *exact[1:4], exact[4].abs()]
    if dtype in RELATIVE:
        assert_close(
            output, ms_deform_attn_reference(*exact), dtype, ms_deform_attn_reference(*magnitudes).clamp(min=1)
        )
    else:
        in_float32 = op(*[x.float() if x.is_floating_point() else x for x in arguments])
        assert_close(output, in_float32.to(dtype).cpu().double(), dtype, None)

    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for actual, expected in zip(
        gradients(op, arguments, grad_output.to(device)),
        gradients(ms_deform_attn_reference, exact, grad_output.double()),
        strict=True,
    ):
        assert (actual.dtype, actual.device.type) == (dtype, device)
        assert actual.shape == expected.shape
        largest = expected.abs().max() if expected.numel() else 0
        tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}.get(dtype, 4 * torch.finfo(dtype).eps)
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=tolerance, atol=float(tolerance * largest))


@on_all_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_borders_and_outside(dtype, device):
    """Cell centres, edges, corners, far outside, and what no integer can hold."""
    special = [-1e30, -5.0, -0.5, -0.125, 0.0, 0.125, 0.375, 0.5, 0.875, 1.0, 1.125, 1.5, 7.0, 1e30]
    points = torch.cartesian_prod(torch.tensor(special), torch.tensor(special)).to(dtype)
    value, shapes, starts, *_ = random_arguments(batch=1, heads=1, shapes=((4, 4),), dtype=dtype, device=device)
    locations = points.view(1, -1, 1, 1, 1, 2).to(device)
    arguments = [value, shapes, starts, locations, torch.ones_like(locations[..., 0])]
    expected = F.grid_sample(
        value.cpu().double()[0, :, 0].T.reshape(1, -1, 4, 4),
        2 * points.double().view(1, 1, -1, 2).clamp(-50, 50) - 1,
        align_corners=False,
    )[0, :, 0].T
    torch.testing.assert_close(op(*arguments)[0].cpu().double(), expected, rtol=0, atol=10 * torch.finfo(dtype).eps)
    grad_output = torch.ones(1, len(points), 8).to(device, dtype)
    assert all(gradient.isfinite().all() for gradient in gradients(op, arguments, grad_output))


@on_all_devices
def test_locations_that_are_no_numbers_sample_nothing(device):
    arguments = random_arguments(device=device)
    arguments[3].fill_(float("nan"))
    assert (op(*arguments) == 0).all()


@on_all_devices
def test_what_lies_outside_a_level_does_not_count(device):
    """Not even if its neighbour in memory is infinite."""
    value, shapes, starts, locations, weights = random_arguments(batch=1, shapes=((2, 2), (2, 2)), device=device)
    value[:, 4:] = float("inf")
    locations[:, :, :, 0] = 1.2
    locations[:, :, :, 1] = 9.0
    assert op(value, shapes, starts, locations, weights).isfinite().all()


@on_all_devices
def test_gradients_are_derivatives(device):
    arguments = random_arguments(queries=3, shapes=SHAPES[:2], device=device)
    for index in (0, 3, 4):
        arguments[index].requires_grad_()
    # on a GPU additions come in any order
    assert torch.autograd.gradcheck(op, arguments, eps=1e-7, atol=1e-6, nondet_tol=1e-12 * (device == "cuda"))


@on_all_devices
def test_any_strides(device):
    value, shapes, starts, locations, weights = random_arguments(device=device)
    strided = [
        value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        shapes.flip(0).flip(0).T.contiguous().T,
        starts.repeat_interleave(2)[::2],
        locations.repeat_interleave(2, dim=1)[:, ::2],
        weights.transpose(1, 4).contiguous().transpose(1, 4),
    ]
    assert not any(tensor.is_contiguous() for tensor in (strided[0], strided[2], strided[3], strided[4]))
    assert torch.equal(op(*strided), op(value, shapes, starts, locations, weights))
    grad_output = torch.randn(1, 5, 16, dtype=torch.float64, device=device).expand(2, -1, -1)
    for actual, expected in zip(
        gradients(op, strided, grad_output),
        gradients(op, [value, shapes, starts, locations, weights], grad_output.contiguous()),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * (device == "cuda"))


@on_all_devices
def test_views_that_begin_anywhere_in_memory(device):
    """Not at a multiple of what a vector load needs."""
    arguments = random_arguments(channels=32, dtype=torch.float32, device=device)
    grad_output = torch.randn(2, 5, 64).to(device)

    def shifted(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    def op_on_shifted(*arguments):
        return op(*[shifted(x) if x.is_floating_point() else x for x in arguments])

    assert torch.equal(op_on_shifted(*arguments), op(*arguments))
    torch.testing.assert_close(
        gradients(op_on_shifted, arguments, shifted(grad_output)), gradients(op, arguments, grad_output)
    )


@needs_gpu
def test_shapes_on_the_gpu():
    arguments = random_arguments(device="cuda")
    on_gpu = [tensor.cuda() for tensor in arguments]
    assert torch.equal(op(*on_gpu), op(*arguments))


def test_threads_do_not_change_a_bit():
    arguments = random_arguments(queries=400, heads=3, channels=32, dtype=torch.float32)
    grad_output = torch.randn(2, 400, 96)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append([op(*arguments), *gradients(op, arguments, grad_output)])
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@on_all_devices
def test_calls_from_several_threads(device):
    """As DataParallel makes them; on a GPU each on a stream of its own."""
    arguments = [random_arguments(seed=seed, queries=200, device=device) for seed in range(4)]
    grad_output = torch.ones(2, 200, 16, dtype=torch.float64, device=device)
    expected = [[op(*args), *gradients(op, args, grad_output)] for args in arguments]
    actual: dict[int, list[torch.Tensor]] = {}

    def work(index: int) -> None:
        stream = torch.cuda.Stream() if device == "cuda" else None
        with torch.cuda.stream(stream):
            actual[index] = [op(*arguments[index]), *gradients(op, arguments[index], grad_output)]
            actual[index] = [result.cpu() for result in actual[index]]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index in range(4):
        for a, b in zip(actual[index], expected[index], strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=0, atol=1e-12 * (device == "cuda"))


@on_all_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype, device):
    arguments = random_arguments(dtype=dtype, device=device)
    for index in (0, 3, 4):
        arguments[index].requires_grad_()
    torch.library.opcheck(torch.ops.siamese_detr.ms_deform_attn.default, tuple(arguments))
    grad_output = torch.randn(2, 5, 16).to(device, dtype)
    checks = ("test_schema", "test_faketensor")
    detached = [tensor.detach() for tensor in arguments]
    backward = torch.ops.siamese_detr.ms_deform_attn_backward.default
    torch.library.opcheck(backward, (grad_output, *detached), test_utils=checks)


@on_all_devices
def test_compiles_without_a_graph_break(device):
    arguments = random_arguments(dtype=torch.float32, device=device)
    compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), op(*arguments))
    grad_output = torch.randn(2, 5, 16).to(device)
    for actual, expected in zip(
        gradients(compiled, arguments, grad_output), gradients(op, arguments, grad_output), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_is_traced_for_a_gpu_with_levels_on_the_cpu():
    """As the detector calls it; no GPU is needed for that."""
    mode, gpu = FakeTensorMode(), torch.device("cuda:0")
    real = random_arguments()
    fake = [mode.from_tensor(x) for x in real]
    on_gpu = [FakeTensor(mode, x.to("meta"), gpu) if x.is_floating_point() else mode.from_tensor(x) for x in real]
    with mode:
        output = op(*on_gpu)
        assert (output.shape, output.dtype, output.device) == ((2, 5, 16), torch.float64, gpu)
        results = torch.ops.siamese_detr.ms_deform_attn_backward(output, *on_gpu)
        for result, index in zip(results, (0, 3, 4), strict=True):
            assert (result.shape, result.device) == (real[index].shape, gpu)
        with pytest.raises(ValueError, match="attention_weights: expected to be on cuda:0"):
            op(*on_gpu[:4], fake[4])


def test_exports():
    class Model(torch.nn.Module):
        def forward(self, *arguments):
            return 2 * ms_deform_attn(*arguments)

    arguments = tuple(random_arguments())
    program = torch.export.export(Model(), arguments)
    assert "siamese_detr.ms_deform_attn" in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), 2 * op(*arguments))


@on_all_devices
def test_second_derivatives_are_refused(device):
    arguments = random_arguments(device=device)
    arguments[0].requires_grad_()
    (gradient,) = torch.autograd.grad(op(*arguments).square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@on_all_devices
def test_autocast_computes_in_float32(device):
    arguments = random_arguments(dtype=torch.float32, device=device)
    mixed = [arguments[0].bfloat16(), *arguments[1:]]
    with torch.autocast(device, torch.bfloat16):
        output = op(*mixed)
    assert output.dtype == torch.float32
    assert torch.equal(output, op(mixed[0].float(), *mixed[1:]))


@needs_gpu
def test_on_a_gpu_it_is_no_deterministic_algorithm():
    arguments = random_arguments(device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="ms_deform_attn_backward_cuda does not have a deterministic"):
            gradients(op, arguments, torch.ones(2, 5, 16, dtype=torch.float64, device="cuda"))
    finally:
        torch.use_deterministic_algorithms(False)


def test_kernels_for_any_processor():
    """The form without AVX2 gives the same results; as PyTorch's own it is chosen by ATEN_CPU_CAPABILITY."""
    code = (
        "import torch; from ops import *; from tests.ops.cases import random_arguments\n"
        "for dtype in (torch.float32, torch.float64):\n"
        "    a = random_arguments(channels=44, dtype=dtype)\n"
        "    for i in (0, 3, 4): a[i].requires_grad_()\n"
        "    g = torch.ones(2, 5, 88, dtype=dtype)\n"
        "    for f, r in zip(*[[o, *torch.autograd.grad(o, [a[0], a[3], a[4]], g)]\n"
        "                      for o in (ms_deform_attn(*a), ms_deform_attn_reference(*a))]):\n"
        "        torch.testing.assert_close(f, r, rtol=1e-5, atol=1e-4)\n"
        "print('equal')"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr


def changed(index: int, change, device: str) -> list:
    arguments = random_arguments(device=device)
    arguments[index] = change(arguments[index])
    return arguments


@on_all_devices
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[0], r"value: expected \[batch, positions, heads, channels\]"),
        (0, lambda x: x[:, 1:], "spatial_shapes: the levels have 40 positions, but value has 39"),
        (0, lambda x: x[:1], "sampling_locations: expected 1 .*the batch of value"),
        (0, lambda x: x[:, :, :1], "sampling_locations: expected 1 .*the heads of value"),
        (0, lambda x: x.long(), "value: expected float32"),
        (0, lambda x: x.float(), "sampling_locations: expected Float, the dtype of value, got Double"),
        (0, lambda x: x.to("meta"), "sampling_locations: expected to be on meta"),
        (1, lambda x: x.to("meta"), "spatial_shapes: expected to be on the CPU or on "),
        (1, lambda x: x.int(), "spatial_shapes: expected int64"),
        (1, lambda x: x[:, :1], "spatial_shapes: expected 2"),
        (1, lambda x: x[:2], "level_start_index: expected 2"),
        (1, lambda x: -x, "spatial_shapes: level 0 has a height and width of -6 and -4"),
        (1, lambda x: x * 2**29, "spatial_shapes: level 0"),
        (1, lambda x: x.flip(0), "level_start_index: expected level 1 to start at 10"),
        (2, lambda x: x + 1, "level_start_index: expected level 0 to start at 0.*got 1"),
        (2, lambda x: x[None], r"level_start_index: expected \[levels\]"),
        (2, lambda x: x.double(), "level_start_index: expected int64"),
        (3, lambda x: x[..., :1], "sampling_locations: expected 2 .*x and y"),
        (3, lambda x: x[:, :, :, :2], "sampling_locations: expected 3 .*the levels"),
        (3, lambda x: x[:, :2], "attention_weights: expected 2 .*as sampling_locations"),
        (4, lambda x: x.bfloat16(), "attention_weights: expected Double"),
        (4, lambda x: x[..., None], r"attention_weights: expected \[batch, queries, heads, levels, points\]"),
    ],
)
def test_wrong_arguments_are_named(index, change, message, device):
    with pytest.raises((ValueError, RuntimeError), match=message):
        op(*changed(index, change, device))


@pytest.mark.parametrize(
    ("index", "change", "name"),
    [
        (0, lambda x: x[0], "value"),
        (0, lambda x: x[:1], "sampling_locations"),
        (0, lambda x: x[:, :, :1], "sampling_locations"),
        (0, lambda x: x.long(), "value"),
        (0, lambda x: x.float(), "sampling_locations"),
        (1, lambda x: x.int(), "spatial_shapes"),
        (1, lambda x: x[:, :1], "spatial_shapes"),
        (1, lambda x: x[:2], "level_start_index"),
        (2, lambda x: x[None], "level_start_index"),
        (2, lambda x: x.double(), "level_start_index"),
        (3, lambda x: x[..., 0], "sampling_locations"),
        (3, lambda x: x[..., :1], "sampling_locations"),
        (3, lambda x: x[:, :2], "attention_weights"),
        (4, lambda x: x.bfloat16(), "attention_weights"),
        (4, lambda x: x[..., None], "attention_weights"),
    ],
)
def test_wrong_arguments_without_contents_are_named(index, change, name):
    arguments = [tensor.to("meta") for tensor in changed(index, change, "cpu")]
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        op(*arguments)


@needs_gpu
@pytest.mark.parametrize(
    ("index", "message"),
    [(3, "sampling_locations: expected to be on cuda:0"), (4, "attention_weights: expected to be on cuda:0")],
)
def test_mixed_devices_are_named(index, message):
    with pytest.raises(ValueError, match=message):
        op(*changed(index, torch.Tensor.cpu, "cuda"))


@on_all_devices
def test_a_wrong_gradient_is_named(device):
    backward = torch.ops.siamese_detr.ms_deform_attn_backward
    arguments = random_arguments(device=device)
    with pytest.raises(ValueError, match="grad_output: expected 16"):
        backward(torch.zeros(2, 5, 3, dtype=torch.float64, device=device), *arguments)
    with pytest.raises(ValueError, match="grad_output: expected Double"):
        backward(torch.zeros(2, 5, 16, device=device), *arguments)
    with pytest.raises(ValueError, match="grad_output: expected to be on "):
        backward(torch.zeros(2, 5, 16, dtype=torch.float64, device="meta"), *arguments)
    with pytest.raises(ValueError, match=r"grad_output: expected \[2, 5, 16\]"):
        backward(torch.zeros(2, 5, 3, dtype=torch.float64, device="meta"), *[x.to("meta") for x in arguments])
