"""The CUDA kernels without a GPU: run on the CPU through a stand-in for CUDA, and compiled for GPUs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.reference import ms_deform_attn_reference

ROOT = Path(__file__).resolve().parent.parent.parent
SHIM = ROOT / "tests" / "ops" / "cuda_shim"
COMPILE = ["g++", "-std=c++17", "-O1", "-g", f"-I{SHIM}", str(SHIM / "driver.cpp")]
SANITIZERS = ["-fsanitize=address,alignment", "-fno-sanitize-recover=all"]

# Largest errors: of rounding a result to its type, relative to the entry; of computing it, relative to the largest one.
ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
COMPUTATION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}

FOUR_LEVELS = ((7, 5), (4, 3), (2, 2), (1, 1))


class Sizes(NamedTuple):
    levels: tuple[tuple[int, int], ...]
    points: int
    heads: int
    channels: int
    queries: int
    batch: int = 2


CASES = [
    Sizes(FOUR_LEVELS, points=4, heads=8, channels=32, queries=13),
    Sizes(((4, 6),), points=1, heads=1, channels=32, queries=7),
    Sizes(((8, 8), (3, 1)), points=3, heads=3, channels=32, queries=37, batch=3),
    Sizes(FOUR_LEVELS, points=2, heads=3, channels=16, queries=11),
    Sizes(((5, 9),), points=4, heads=8, channels=64, queries=5),
    Sizes(FOUR_LEVELS, points=3, heads=1, channels=64, queries=9, batch=1),
    Sizes(FOUR_LEVELS, points=1, heads=8, channels=5, queries=3),
    Sizes(((1, 6), (2, 2)), points=2, heads=3, channels=48, queries=5),
    Sizes(((3, 3),) * 9, points=4, heads=1, channels=1, queries=3),
]


class Inputs(NamedTuple):
    value: Tensor
    shapes: Tensor
    starts: Tensor
    locations: Tensor
    weights: Tensor
    grad_output: Tensor

    def results(self) -> list[Tensor]:
        """Of the reference in float64: output, gradients of value, locations and weights."""
        inputs = [tensor.double().requires_grad_() for tensor in (self.value, self.locations, self.weights)]
        output = ms_deform_attn_reference(inputs[0], self.shapes, self.starts, *inputs[1:])
        return [output.detach(), *torch.autograd.grad(output, inputs, self.grad_output.double())]


def make_inputs(sizes: Sizes, dtype: torch.dtype) -> Inputs:
    shapes = torch.tensor(sizes.levels)
    areas = shapes.prod(1)
    points = (sizes.batch, sizes.queries, sizes.heads, len(sizes.levels), sizes.points)
    locations = torch.rand(*points, 2, dtype=torch.float64) * 1.6 - 0.3
    # On the edges, in the middle, at the centres of cells next to a level and far outside.
    special = torch.tensor([0, 1, 0.5, -0.25, 1.25, 100, -100], dtype=torch.float64)
    chosen = torch.rand(locations.shape) < 0.3
    locations[chosen] = special[torch.randint(len(special), (int(chosen.sum()),))]
    return Inputs(
        torch.randn(sizes.batch, int(areas.sum()), sizes.heads, sizes.channels).to(dtype),
        shapes,
        areas.cumsum(0) - areas,
        locations.to(dtype),
        torch.rand(points).to(dtype),
        torch.randn(sizes.batch, sizes.queries, sizes.heads * sizes.channels).to(dtype),
    )


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Driver:
    """The kernels, compiled for the CPU."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, direction: str, inputs: Inputs, shapes: list[tuple[tuple[int, ...], torch.dtype]]) -> list[Tensor]:
        dtype = inputs.value.dtype
        source, target = self.program.with_suffix(".in"), self.program.with_suffix(".out")
        sizes = [*inputs.value.shape, inputs.locations.shape[1], *inputs.locations.shape[3:5]]
        levels = torch.cat([inputs.shapes, inputs.starts.unsqueeze(1)], 1)
        arrays = [torch.tensor(sizes), levels, inputs.value, inputs.locations, inputs.weights]
        if direction == "backward":
            arrays.append(inputs.grad_output)
        source.write_bytes(b"".join(map(as_bytes, arrays)))
        command = [str(self.program), direction, str(dtype).removeprefix("torch."), str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"})
        assert done.returncode == 0, done.stderr[-4000:]
        data, results = target.read_bytes(), []
        for shape, result_dtype in shapes:
            size = int(np.prod(shape)) * result_dtype.itemsize
            results.append(torch.frombuffer(bytearray(data[:size]), dtype=result_dtype).view(shape))
            data = data[size:]
        assert not data
        return results

    def forward(self, inputs: Inputs) -> Tensor:
        return self.run("forward", inputs, [(inputs.grad_output.shape, inputs.value.dtype)])[0]

    def backward(self, inputs: Inputs) -> list[Tensor]:
        dtype = inputs.value.dtype
        summed = torch.promote_types(dtype, torch.float32)
        shapes = [(inputs.value.shape, summed), (inputs.locations.shape, dtype), (inputs.weights.shape, dtype)]
        return self.run("backward", inputs, shapes)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    program = tmp_path_factory.mktemp("cuda_shim") / "driver"
    # The driver watches over its arrays by itself where the sanitizers' libraries are not installed.
    sanitized = subprocess.run([*COMPILE, *SANITIZERS, "-o", str(program)], capture_output=True, text=True)
    if sanitized.returncode != 0:
        print("compiling without sanitizers:", sanitized.stderr[-500:])
        subprocess.run([*COMPILE, "-o", str(program)], check=True)
    return Driver(program)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    error = (actual.double() - expected).abs()
    allowed = ROUNDING[actual.dtype] * expected.abs() + COMPUTATION[dtype] * expected.abs().max()
    assert (error <= allowed).all(), f"{name}: error {error.max():.3g}, largest entry {expected.abs().max():.3g}"


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("sizes", CASES, ids=lambda s: f"L{len(s.levels)}P{s.points}M{s.heads}D{s.channels}")
def test_kernels_agree_with_the_reference(driver: Driver, sizes: Sizes, dtype: torch.dtype) -> None:
    inputs = make_inputs(sizes, dtype)
    actual = [driver.forward(inputs), *driver.backward(inputs)]
    names = ["output", "gradient of value", "gradient of locations", "gradient of weights"]
    for name, result, expected in zip(names, actual, inputs.results(), strict=True):
        assert_near(result, expected, dtype, name)


@pytest.mark.parametrize("channels", [32, 5])
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_nothing_is_sampled_nowhere(driver: Driver, dtype: torch.dtype, channels: int) -> None:
    inputs = make_inputs(CASES[0]._replace(channels=channels, queries=5), dtype)
    nowhere = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30], dtype=torch.float64)
    inputs.locations[..., 0] = nowhere.to(dtype).view(1, -1, 1, 1, 1)
    for result in [driver.forward(inputs), *driver.backward(inputs)]:
        assert torch.equal(result, torch.zeros_like(result))


def test_values_outside_the_samples_do_not_count(driver: Driver) -> None:
    """A weight of zero would not do: zero times NaN is NaN."""
    inputs = make_inputs(Sizes(((4, 4), (2, 2)), points=1, heads=1, channels=32, queries=3, batch=1), torch.float32)
    inputs.locations.fill_(0.0)  # of the four corners only the first cell is inside
    inputs.value.fill_(float("nan"))
    inputs.value[:, inputs.starts] = 1.0
    torch.testing.assert_close(driver.forward(inputs)[0, :, 0], inputs.weights[0, :, 0, :, 0].sum(1) / 4)
    assert all(gradient.isfinite().all() for gradient in driver.backward(inputs))


def nvcc() -> str:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc: the CUDA kernels are not compiled")
    return compiler


KERNEL = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for '(?P<arch>sm_\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
SYMBOL = re.compile(r"(forward|backward)I(f|d|6__half|13__nv_bfloat16)Li(\d+)E")


def test_kernels_compile_without_spills(tmp_path: Path) -> None:
    command = [nvcc(), "-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v"]
    for arch in (80, 90):
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += ["-c", str(SHIM / "instantiate.cu"), "-o", str(tmp_path / "instantiate.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    spills = {}
    for kernel in KERNEL.finditer(done.stdout + done.stderr):
        direction, dtype, channels = SYMBOL.search(kernel["symbol"]).groups()
        spilled = int(kernel["stores"]) + int(kernel["loads"])
        print(f"{kernel['arch']} {direction:8} {dtype:14} {channels:>2} channels:", end=" ")
        print(f"{kernel['registers']} registers, {spilled} bytes spilled")
        spills[kernel["arch"], direction, dtype, int(channels)] = spilled
    assert len(spills) == 2 * 2 * 4 * 4
    assert not any(spills.values())


@pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch has no headers for CUDA")
def test_operator_compiles(tmp_path: Path) -> None:
    """With PyTorch's headers."""
    from torch.utils.cpp_extension import include_paths

    command = [nvcc(), "-std=c++20", "-gencode", "arch=compute_90,code=sm_90", "-c"]
    command += [f"-I{path}" for path in include_paths("cuda")]
    command += [str(ROOT / "ops" / "src" / "cuda" / "ms_deform_attn_cuda.cu"), "-o", str(tmp_path / "operator.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
