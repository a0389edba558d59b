"""COCO's scores of boxes by pycocotools or, several times faster, by faster-coco-eval: the same numbers."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True)
class Scorer:
    """A package that scores as COCO does.

    Attributes:
        name: of the package, with its version.
        make: (objects, detections, iouType=) -> an evaluation with the interface of pycocotools' ``COCOeval``.
    """

    name: str
    make: Callable[..., Any]

    def __call__(self, objects: COCO, detections: COCO, counts: Sequence[int]) -> Any:
        """The accumulated evaluation, its ``eval`` and ``params``, for these numbers of detections an image; silent."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = self.make(objects, detections, iouType="bbox")
            evaluation.params.maxDets = list(counts)
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation


def pycocotools_scorer() -> Scorer:
    """The reference."""
    return Scorer(f"pycocotools {version('pycocotools')}", COCOeval)


def fastest_scorer() -> Scorer:
    """faster-coco-eval where it is installed, else pycocotools."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        return pycocotools_scorer()
    from faster_coco_eval import COCOeval_faster

    return Scorer(f"faster-coco-eval {version('faster-coco-eval')}", COCOeval_faster)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For half a million detections as dictionaries: looking through them again and again takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
