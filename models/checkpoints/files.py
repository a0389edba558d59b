"""Reads weights: files of ``torch.save``, safetensors, Hugging Face model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from util import inputs
from util.checkpoint import LATEST, load_file
from util.errors import CheckpointError
from util.inputs import Unreadable
from util.optional import require

CONTAINERS = ("state_dict", "model")
"""Keys of the weights in files that also hold other things."""

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""Of a Hugging Face folder; NAME.index.json lists the files of a split model."""

HEADER_LENGTH = 8
"""Bytes at the beginning of a safetensors file that hold the length of its JSON header."""


def read_content(path: Path) -> Any:
    """Read a file of weights; code in it never runs.

    Raises:
        CheckpointError: missing, damaged, or with content other than tensors and plain values.
        UserError: a safetensors file, but the package is not installed.
    """
    return _read_safetensors(path) if _is_safetensors(path) else load_file(path)


def find_state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name in a file's content, and all other entries.

    Raises:
        CheckpointError: the content is not a dictionary.
    """
    others: dict[str, Any] = {}
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            others |= {str(key): value for key, value in content.items() if key != container}
            content = content[container]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not weights by name")
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return weights, others | {str(key): value for key, value in content.items() if not isinstance(value, Tensor)}


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a Hugging Face model folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not (folder / CONFIG).is_file():
        advice = f"; pass its checkpoint, {folder / LATEST}" if (folder / LATEST).is_file() else ""
        raise CheckpointError(f"{folder}: a folder without {CONFIG}, so not a Hugging Face model{advice}")
    return read_json(folder / CONFIG)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights in a Hugging Face model folder.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return _tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_split(folder, folder / f"{name}.index.json")
    raise CheckpointError(f"{folder}: no weights here (looked for {' and '.join(WEIGHTS_FILES)}, whole or split)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: not a JSON object.
    """
    try:
        value = inputs.read_json(path)
    except Unreadable as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def _tensors(path: Path) -> dict[str, Tensor]:
    return find_state_dict(read_content(path), path)[0]


def _read_split(folder: Path, index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and name == Path(name).name for name in files):
        raise CheckpointError(f'{index}: "weight_map" must map names of tensors to files of this folder')
    weights: dict[str, Tensor] = {}
    for name in sorted(set(files)):
        weights |= _tensors(folder / name)
    missing = weight_map.keys() - weights.keys()
    if missing:
        raise CheckpointError(f"{index}: {min(missing)} is in none of its files")
    return weights


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins with a length and a JSON object; torch's files begin as zip archives or pickles."""
    try:
        inputs.require_file(path)
        with path.open("rb") as file:
            return file.read(HEADER_LENGTH + 1)[HEADER_LENGTH:] == b"{"
    except (OSError, Unreadable):
        return False  # load_file raises the error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", "safetensors", f"{path}:")
    try:
        inputs.require_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or truncated ({error})") from None
