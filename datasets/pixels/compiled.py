"""The operations on pixels in compiled form (``pixels.cpp``), if there is a C++ compiler.

They are compiled once, at first use (some seconds), into ``~/.cache/torch_extensions`` or ``TORCH_EXTENSIONS_DIR``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ops.cache import cache_folder, check_private
from util.files import written_whole

SOURCE = Path(__file__).with_name("pixels.cpp")
# Without fused multiply-add, all machines compute the same.
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
KINDS = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
STEP = np.dtype([("kind", np.int32), ("strength", np.float32)])


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, compiled if necessary. If that is not possible, None and one warning that says why."""
    try:
        library = _loaded()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        warnings.warn(
            f"samples are made by Pillow and PyTorch, about eight times slower: datasets/pixels/pixels.cpp cannot be "
            f"compiled and loaded ({told[0] if told else error}); {_advice(error)}",
            stacklevel=2,
        )
        return None
    library.resample.restype = library.change.restype = None
    return library


def _advice(error: Exception) -> str:
    if isinstance(error, ValueError):
        return "the environment variable CXX is not a command line; correct it"
    if isinstance(error, PermissionError):
        return "make sure that only you can write there"
    return "install a C++ compiler, or name one in the environment variable CXX"


def _loaded() -> ctypes.CDLL:
    """The library. If the cached one cannot be loaded, it is compiled again, once."""
    library = _compiled()
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        warnings.warn(f"{library}: cannot be loaded ({str(error)[:100]}), so it is compiled again", stacklevel=2)
        library.unlink()
        return ctypes.CDLL(str(_compiled()))


def _compiled() -> Path:
    """The library's file, named by source and machine. It is never half written, even by several processes at once."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    cache = cache_folder()
    library = cache / "siamese_detr_pixels" / f"pixels_{platform.machine()}_{digest}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    check_private(library.parent, cache)
    if not library.exists():
        with written_whole(library) as built:
            command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS, str(SOURCE), "-o", str(built)]
            subprocess.run(command, capture_output=True, text=True, check=True)
    check_private(library, cache)
    return library


def resample(library: ctypes.CDLL, picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The rectangle ``box`` [4] (xyxy, pixels) of ``picture`` [H, W, 3] uint8 at (width, height) ``size``."""
    picture = np.ascontiguousarray(picture)
    width, height = size
    out = np.empty((height, width, 3), dtype=np.uint8)
    box = np.ascontiguousarray(box, dtype=np.float64)
    library.resample(_address(picture), *picture.shape[:2], _address(box), _address(out), height, width)
    return out


def change(
    library: ctypes.CDLL, picture: np.ndarray, steps: Sequence[tuple[str, float]], taps: np.ndarray, out: np.ndarray
) -> None:
    """Change the colours of ``picture`` and blur it.

    Args:
        picture: [H, W, 3] uint8, contiguous.
        steps: (name in KINDS, strength) in order.
        taps: float32 [radius + 1], weights of the blur from the middle outwards; [1] for none.
        out: [3, H, W] uint8, contiguous; receives the result.
    """
    encoded = np.array([(KINDS[name], strength) for name, strength in steps], dtype=STEP)
    library.change(
        _address(picture),
        *picture.shape[:2],
        _address(encoded),
        len(encoded),
        _address(taps),
        len(taps) - 1,
        _address(out),
    )


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
