"""What the extension is compiled from, shared by ``setup.py`` and the build at first use."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent
PACKAGE = "siamese_detr_ops"
CXX_FLAGS = ["-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr"]


def source_files(*, with_cuda: bool) -> list[Path]:
    """The files to compile."""
    return [path for path in _files(with_cuda) if path.suffix in (".cpp", ".cu")]


def module_name(*, with_cuda: bool) -> str:
    """Name of the compiled module: it changes with the sources and with PyTorch, so that no stale build is loaded."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in [ROOT / "sources.py", *_files(with_cuda)]:  # setup.py is not installed
        digest.update(path.name.encode() + path.read_bytes())
    return f"_C_{'cuda' if with_cuda else 'cpu'}_{digest.hexdigest()[:12]}"


def _files(with_cuda: bool) -> list[Path]:
    folders = ["src", "src/cpu", *(["src/cuda"] if with_cuda else [])]
    return sorted(path for folder in folders for path in (ROOT / folder).iterdir() if path.is_file())


def why_no_cuda() -> str | None:
    """Why the CUDA kernels cannot be compiled here, in a line; None if they can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return "no GPU here; set TORCH_CUDA_ARCH_LIST (such as '8.0;9.0') to build for other machines"
    from torch.utils import cpp_extension  # says on stderr that there is no GPU, if so

    if cpp_extension.CUDA_HOME is None:
        return "no CUDA toolkit found; install one or set CUDA_HOME"
    found = _toolkit_version(Path(cpp_extension.CUDA_HOME))
    if found is None:
        return f"no working nvcc in {cpp_extension.CUDA_HOME}"
    if found.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"the toolkit in {cpp_extension.CUDA_HOME} is CUDA {found}, PyTorch needs CUDA {torch.version.cuda}"
    return None


def _toolkit_version(home: Path) -> str | None:
    try:
        command = [home / "bin" / "nvcc", "--version"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"release (\d+\.\d+)", output)
    return match and match[1]
