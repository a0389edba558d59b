"""Building and loading the operator: once for all processes, installed, or not at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import sources
from ops.extension import _reason

ROOT = Path(__file__).resolve().parents[2]
USE = (
    "import torch, ops; from tests.ops.cases import random_arguments as a\n"
    "ops.ms_deform_attn(*a()); out = ops.ms_deform_attn(*a())\n"
    "torch.testing.assert_close(out, ops.ms_deform_attn_reference(*a()))\n"
    "print('compiled' if hasattr(torch.ops.siamese_detr, 'ms_deform_attn') else 'reference')"
)


def start(cache: Path, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(cache), **environment}
    command = [sys.executable, "-c", USE]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_without_a_compiler_the_reference_serves_with_one_warning(tmp_path):
    process = start(tmp_path, CXX="/nowhere/c++")
    output, errors = process.communicate()
    assert output.strip() == "reference", errors
    warnings = [line for line in errors.splitlines() if "UserWarning" in line]
    assert len(warnings) == 1
    assert "runs in plain PyTorch, several times slower" in warnings[0]
    assert "/nowhere/c++" in warnings[0]
    assert "pip install --no-build-isolation ./ops" in warnings[0]
    assert not list(tmp_path.rglob("*.so"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    output, errors = start(tmp_path / "file").communicate()
    assert output.strip() == "reference", errors
    assert str(tmp_path / "file") in errors


def test_a_failed_build_is_told_by_the_line_that_says_why():
    output = "g++ a.o\n/usr/bin/ld: cannot find -lcudart: No such file\ncollect2: error: ld returned 1 exit status\n"
    assert _reason(output) == "/usr/bin/ld: cannot find -lcudart: No such file"
    assert _reason("ninja\na.cpp:3:1: error: expected ';'\nerror: command failed\n") == "a.cpp:3:1: error: expected ';'"
    assert _reason("killed\n") == "killed"


@pytest.mark.slow
def test_processes_at_once_compile_once(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [output.strip() for output, _ in outputs] == ["compiled"] * 3
    assert sum("compiling" in errors for _, errors in outputs) == 1
    assert len(list(tmp_path.rglob("*.so"))) == 1


@pytest.mark.slow
def test_an_installed_build_is_used_and_works_elsewhere(tmp_path):
    """Built from a copy, lest build folders appear in the project."""
    shutil.copytree(ROOT / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    site, cache = tmp_path / "site", tmp_path / "cache"
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", site]
    subprocess.run([*command, tmp_path / "ops"], check=True, capture_output=True)
    output, errors = start(cache, PYTHONPATH=str(site)).communicate()
    assert output.strip() == "compiled", errors
    assert not cache.exists()

    code = "import siamese_detr_ops as o, torch; print(o.MSDeformAttn, torch.ops.siamese_detr.ms_deform_attn)"
    code = "import siamese_detr_ops.extension as e; assert e.load() is None; " + code
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_the_name_changes_with_the_sources(tmp_path, monkeypatch):
    before = sources.module_name(with_cuda=False)
    shutil.copytree(sources.ROOT, tmp_path / "ops")
    monkeypatch.setattr(sources, "ROOT", tmp_path / "ops")
    assert sources.module_name(with_cuda=False) == before
    path = tmp_path / "ops" / "src" / "sampling.h"
    path.write_text(path.read_text() + "// changed\n")
    assert sources.module_name(with_cuda=False) != before


def test_why_there_is_no_cuda(tmp_path, monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no GPU here" in sources.why_no_cuda()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    assert "no CUDA toolkit found" in sources.why_no_cuda()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert "no working nvcc" in sources.why_no_cuda()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    nvcc.chmod(0o755)
    assert "is CUDA 11.8, PyTorch needs CUDA 13.0" in sources.why_no_cuda()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.0'\n")
    assert sources.why_no_cuda() is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in sources.why_no_cuda()
