"""Finds, compiles and loads the compiled operator.

It takes an installed build (``pip install --no-build-isolation ./ops``) or a build in the cache. If there is neither,
it compiles one for all processes of the machine. Without a compiler it uses plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from . import fake
from .cache import cache_folder, check_private, locked
from .sources import PACKAGE, ROOT, module_name, why_no_cuda

HOW_TO_BUILD = "pip install --no-build-isolation ./ops"


class BuildError(Exception):
    """The extension cannot be compiled here; the message says why in one line."""


@functools.cache
def load() -> str | None:
    """Load ``torch.ops.siamese_detr``; compile it if necessary.

    Returns:
        None, or why there is no compiled operator.
    """
    try:
        installed = installed_build()
        if installed is not None:
            torch.ops.load_library(installed)
        else:
            load_in_place()
    except (BuildError, OSError) as error:
        return " ".join(str(error).split())
    fake.register()
    return None


@torch.compiler.assume_constant_result
def has_kernels(device_type: str) -> bool:
    """Whether the compiled operator runs on this type of device. The first answer "no" prints a warning.

    The answer is constant while a program runs, so a traced program need not ask again.
    """
    return _has_kernels(device_type)


@functools.cache
def _has_kernels(device_type: str) -> bool:
    reason = load()
    if reason is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        "siamese_detr::ms_deform_attn", {"cpu": "CPU", "cuda": "CUDA"}.get(device_type, "PrivateUse1")
    ):
        return True
    if reason is None and device_type == "cuda":
        reason = f"its CUDA kernels are not built: {why_no_cuda() or 'it was built on a machine without CUDA'}"
    reason = reason or f"there is no kernel for {device_type}"
    warnings.warn(
        "multi-scale deformable attention runs in plain PyTorch, several times slower and with several times the "
        f"memory ({reason}); to build it: {HOW_TO_BUILD}",
        stacklevel=4,
    )
    return False


def installed_build() -> Path | None:
    """The library of an installed package, if it was built from exactly these sources for this PyTorch."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    names = [f"{module_name(with_cuda=with_cuda)}.*so" for with_cuda in (True, False)]
    return next((path for folder in folders or [] for name in names for path in Path(folder).glob(name)), None)


def load_in_place() -> None:
    """Load the library in the cache; compile it if it is missing, or once again if it cannot be loaded.

    Raises:
        BuildError, OSError: as :func:`build_in_place`; or it cannot be loaded.
    """
    library = build_in_place()
    try:
        torch.ops.load_library(library)
    except OSError as error:
        print(f"{library}: cannot be loaded ({str(error)[:100]}), compiling it again", file=sys.stderr)
        library.unlink()
        torch.ops.load_library(build_in_place())


def build_in_place() -> Path:
    """The library in the cache (TORCH_EXTENSIONS_DIR, else ~/.cache/torch_extensions), compiled if it is missing.

    One process compiles, the others wait. A library in the cache is always complete.

    Raises:
        BuildError: it cannot be compiled.
        OSError: the cache cannot be written, or others can write to it.
    """
    with_cuda = why_no_cuda() is None
    cache = cache_folder()
    library = cache / PACKAGE / _machine(with_cuda=with_cuda) / f"{module_name(with_cuda=with_cuda)}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    check_private(library.parent, cache)
    if not library.exists():
        with locked(library.with_suffix(".lock"), "compiling multi-scale deformable attention"):
            if not library.exists():
                _compile(library)
    check_private(library, cache)
    return library


def _machine(*, with_cuda: bool) -> str:
    """Name of a folder per processor and GPU type, because different machines may share the cache."""
    if not with_cuda:
        return platform.machine()
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    targets = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(f"{major}.{minor}" for major, minor in sorted(found))
    return f"{platform.machine()}-sm_{re.sub(r'[^0-9A-Za-z.+]+', '_', targets)}"


def _compile(library: Path) -> None:
    print("compiling multi-scale deformable attention, once (about a minute) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", folder, "--build-temp", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        built = next(Path(folder).rglob(f"{library.stem}.*so"), None)
        if done.returncode or built is None:
            raise BuildError(f"compiling it failed: {_reason(done.stdout + done.stderr)}")
        os.replace(built, library)


def _reason(output: str) -> str:
    """The most useful line of a compiler's output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    signs = ("error:", "not found", "cannot find")
    errors = [line for line in lines if any(sign in line.lower() for sign in signs)]
    return (errors[:1] or lines[-1:] or ["no output"])[0][:300]
