"""What public checkpoints pickle beside tensors: an ``argparse.Namespace`` of their arguments, and numpy scalars.

The scalars are read by the functions below in place of numpy's own, so that a file decides nothing but a number.
"""

from __future__ import annotations

import argparse
import pickle
import re
from typing import Any

import numpy as np

_PLAIN_NUMBER = re.compile(r"[biuf][1248]")


class PickledDtype:
    """Stands for ``numpy.dtype`` while a file is read: the code of a type of numbers, such as ``f8``.

    Raises:
        pickle.UnpicklingError: any other type.
    """

    def __init__(self, code: str, *_ignored: Any) -> None:
        if not (isinstance(code, str) and _PLAIN_NUMBER.fullmatch(code)):
            raise pickle.UnpicklingError(f"a global type of numpy that is no plain number ({code!r:.40})")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        """Of the state numpy pickles, (version, byte order, ...), the order matters alone."""
        self.order = ">" if state[1] == ">" else "<"


def pickled_scalar(dtype: PickledDtype, raw: bytes) -> int | float | bool:
    """Stands for numpy's ``scalar``: the number in the bytes ``raw``."""
    return np.frombuffer(raw, dtype=dtype.order + dtype.code, count=1)[0].item()


PUBLIC_GLOBALS = [
    argparse.Namespace,
    (PickledDtype, "numpy.dtype"),
    (pickled_scalar, "numpy.core.multiarray.scalar"),  # numpy 1
    (pickled_scalar, "numpy._core.multiarray.scalar"),  # numpy 2
]
"""For ``torch.serialization.safe_globals``; a subclass of one of them is none of them."""
