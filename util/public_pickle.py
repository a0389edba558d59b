"""What public checkpoints pickle besides tensors: an ``argparse.Namespace`` of their arguments, and numpy scalars.

The functions below read the scalars instead of numpy's own functions, so that a file can only give a number.
"""

from __future__ import annotations

import argparse
import pickle
import re
from typing import Any

import numpy as np

_PLAIN_NUMBER = re.compile(r"[biuf][1248]")


class PickledDtype:
    """Replaces ``numpy.dtype`` while a file is read: the code of a number type, such as ``f8``.

    Raises:
        pickle.UnpicklingError: another type.
    """

    def __init__(self, code: str, *_ignored: Any) -> None:
        if not (isinstance(code, str) and _PLAIN_NUMBER.fullmatch(code)):
            raise pickle.UnpicklingError(f"a global type of numpy that is not a plain number ({code!r:.40})")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order from the state that numpy pickles, (version, byte order, ...)."""
        self.order = ">" if state[1] == ">" else "<"


def pickled_scalar(dtype: PickledDtype, raw: bytes) -> int | float | bool:
    """Replaces numpy's ``scalar``: the number in the bytes ``raw``."""
    return np.frombuffer(raw, dtype=dtype.order + dtype.code, count=1)[0].item()


PUBLIC_GLOBALS = [
    argparse.Namespace,
    (PickledDtype, "numpy.dtype"),
    (pickled_scalar, "numpy.core.multiarray.scalar"),  # numpy 1
    (pickled_scalar, "numpy._core.multiarray.scalar"),  # numpy 2
]
"""For ``torch.serialization.safe_globals``; subclasses are not included."""
