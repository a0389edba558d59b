"""Writes an :class:`ExportForm` as ONNX or as PyTorch's ``.pt2``."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from util.files import written_whole
from util.optional import require

OPSET = 20
INSTALL = "onnx onnxscript onnxruntime"
DESCRIPTION = "detector.json"
"""The file inside a ``.pt2`` file that holds what ONNX files have as metadata."""

Inputs = tuple[Tensor, ...]


def program_of(form: nn.Module, inputs: Inputs, *, dynamic: bool) -> torch.export.ExportedProgram:
    """The graph of a form; ``dynamic``: batch size, height and width of its inputs may vary."""
    free = torch.export.Dim.DYNAMIC
    sizes = ({0: free, 2: free, 3: free}, {0: free, 1: free, 2: free})[: len(inputs)] if dynamic else None
    with torch.no_grad(), quiet():
        return torch.export.export(form, inputs, dynamic_shapes=sizes, strict=False)


def write_pt2(program: torch.export.ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """Write a file for ``torch.export.load``. Deformable attention stays one operator; ``import ops`` registers it."""
    with written_whole(path) as temporary, quiet():
        torch.export.save(program, temporary, extra_files={DESCRIPTION: json.dumps(description)})


def write_onnx(program: torch.export.ExportedProgram, inputs: Inputs, path: Path, description: dict[str, Any]) -> None:
    """Write one ONNX file, including the weights; ``description`` becomes its metadata, values as JSON.

    Raises:
        UserError: a package is missing.
    """
    require("onnxscript", INSTALL, "exporting to ONNX")
    with quiet():
        exported = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values", "mask"][: len(inputs)],
            output_names=["boxes", "scores", "labels"],
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
            optimize=True,
        )
    exported.model.metadata_props.update({name: json.dumps(value) for name, value in description.items()})
    with written_whole(path) as temporary:
        exported.save(temporary)


def _stable_sort() -> Any:
    """``torch.sort(stable=True)`` along the last dimension: ONNX's TopK puts the lower index first among equals."""
    op = require("onnxscript", INSTALL, "exporting to ONNX").opset20

    def sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Shape(self, start=-1)
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    return sort


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter: printing its progress and logs takes longer than the export."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
