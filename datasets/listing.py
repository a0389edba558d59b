"""Which images a large folder holds: listed once on each machine, and kept beside the output of the run.

Listing 1.3 million files takes seconds on a local disk and minutes on a network's. A run would do it in each of its
processes, and again whenever it is resumed. So the first process of a machine lists, and writes the paths to a file
that all others map into their memory, which they so share. A later start takes this file as it is, if no folder has
changed since: adding, removing or renaming a file changes the time of the folder that holds it.

    images_KEY.json       the root, when it was listed, the time of every folder, and the name of the other file
    images_KEY_HASH.npy   the paths relative to the root, bytes [n]
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import list_with_times
from datasets.records import pack_paths
from util import distributed
from util.files import write_json, written_whole
from util.inputs import Unreadable, read_json, require_file
from util.logger import say

WORTH_KEEPING = 20_000
"""Fewer images are listed in a fraction of a second."""

SETTLED_NS = 2 * 10**9
"""File systems count time in steps of up to two seconds: a folder may have changed once more in the same step."""


def shared_listing(root: str | Path, keep_in: str | Path) -> np.ndarray:
    """Paths of all images below ``root``, packed, as :func:`datasets.images.list_images` has them. Collective.

    Args:
        keep_in: the output folder of the run, where the listing is looked for and kept; where it does not exist, or
            cannot be written, every process lists for itself.

    Raises:
        DataError: no such folder, or no images.
    """
    paths, kept = _list_for_machine(Path(root), Path(keep_in)) if distributed.local_rank() == 0 else (None, None)
    leader = distributed.rank() - distributed.local_rank()
    kept = distributed.all_gather_object(kept)[leader]
    if paths is None and kept is not None:
        paths = _open_paths(Path(keep_in) / kept)
    return pack_paths(list_with_times(root)[0]) if paths is None else paths


def _list_for_machine(root: Path, keep_in: Path) -> tuple[np.ndarray, str | None]:
    """The paths, and the name of the file that holds them; None: they are not kept."""
    index = keep_in / f"images_{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:12]}.json"
    kept = _read_index(index)
    if kept is not None and _is_valid(kept, root):
        paths = _open_paths(keep_in / kept["paths"])
        if paths is not None and _name_of(index, paths) == kept["paths"]:
            say(f"{root}: {len(paths):,} images, as listed in {index} (no folder has changed since)")
            return paths, kept["paths"]
    began = time.time_ns()
    found, times = list_with_times(root)
    paths = pack_paths(found)
    if len(paths) < WORTH_KEEPING or not keep_in.is_dir():
        return paths, None
    name = _name_of(index, paths)
    try:
        with written_whole(keep_in / name) as temporary:
            np.save(temporary, paths, allow_pickle=False)
        write_json({"root": str(root), "listed_at": began, "paths": name, "folders": times}, index)
    except OSError:  # full, or not to be written from this machine: the other processes list for themselves
        return paths, None
    for old in keep_in.glob(f"{index.stem}_*.npy"):
        if old.name != name:
            old.unlink(missing_ok=True)
    mapped = _open_paths(keep_in / name)
    return (paths, None) if mapped is None else (mapped, name)


def _read_index(index: Path) -> dict[str, Any] | None:
    """The index if there is one of the right form: it may be damaged, or of another program."""
    try:
        kept = read_json(index)
        form = {"listed_at": int, "paths": str, "folders": dict}
        is_whole = all(type(kept[name]) is kind for name, kind in form.items())
        is_beside = is_whole and Path(kept["paths"]).name == kept["paths"]
    except (Unreadable, LookupError, TypeError):
        return None
    return kept if is_beside else None


def _is_valid(kept: dict[str, Any], root: Path) -> bool:
    """Whether every folder has the time that it was listed with, and had not just changed then."""
    newest = kept["listed_at"] - SETTLED_NS
    with contextlib.suppress(OSError, ValueError, TypeError):
        return bool(kept["folders"]) and all(
            changed < newest and os.stat(root / folder).st_mtime_ns == changed
            for folder, changed in kept["folders"].items()
        )
    return False


def _open_paths(path: Path) -> np.ndarray | None:
    """The packed paths, mapped; None: the file is not there or damaged."""
    try:
        require_file(path)
        paths = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError):
        return None
    return paths if isinstance(paths, np.ndarray) and paths.dtype.kind == "S" and paths.ndim == 1 else None


def _name_of(index: Path, paths: np.ndarray) -> str:
    """Tells the content, so that index and paths of two runs that write at the same time are not mixed."""
    content = hashlib.blake2b(np.ascontiguousarray(paths).view(np.uint8), digest_size=8)
    content.update(str(paths.dtype).encode())
    return f"{index.stem}_{content.hexdigest()}.npy"
