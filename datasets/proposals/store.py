"""Region proposals: stored on disk for a whole data set, or drawn at random.

On disk, a data set's proposals are one folder, read through memory maps that all processes share:

    boxes.npy         float32 [N, 4], xyxy in pixels of the upright images; image after image, best boxes first
    scores.npy        float32 [N], in descending order within each image
    offsets.npy       int64 [n + 1]; the boxes of image i are rows offsets[i]:offsets[i + 1]
    paths.npy         uint8, paths of the n images relative to the data set's root, UTF-8, one after another
    path_offsets.npy  int64 [n + 1]; the path of image i is path_offsets[i]:path_offsets[i + 1] of them
    meta.json         version of this format, method and parameters that made the proposals, number of images, and a
                      fingerprint of the paths
    failed.json       images that could not be read and therefore have no proposals, with the reason; may be missing
"""

from __future__ import annotations

import hashlib
import json
import os
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from util.errors import DataError
from util.files import folder_written_whole
from util.inputs import NotJson, Unreadable, read_json, require_file

FORMAT_VERSION = 1
FAILED = "failed.json"
"""List of {"path", "reason"}, one entry per image that could not be read."""

MIN_AREA = 0.05  # of the intersection of the views, for regions of any kind
MAX_ASPECT = 8.0  # of random boxes: width / height within 1/8..8

_ARRAYS = {  # name -> (dtype, shape without the first dimension)
    "boxes": (np.float32, (4,)),
    "scores": (np.float32, ()),
    "offsets": (np.int64, ()),
    "paths": (np.uint8, ()),
    "path_offsets": (np.int64, ()),
}
# What numpy raises on damaged files.
_READER_ERRORS = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, tokenize.TokenError)
_READER_ERRORS += (RecursionError, MemoryError)
_META = {"version": int, "method": str, "parameters": dict, "num_images": int, "fingerprint": str}


def random_boxes(rng: np.random.Generator, within: np.ndarray, count: int) -> np.ndarray:
    """``count`` boxes [count, 4] float64 inside the box ``within`` [4], both xyxy, drawn as Siamese DETR's authors do.

    The top-left corner is uniform in ``within``, the height uniform in the space below it. The width is uniform between
    the one that gives the least area (MIN_AREA of ``within``) and the space to the right. Boxes for which no such width
    exists are drawn again, and so are those with an aspect ratio outside 1/8..8 and farther from 1 than that of
    ``within``. Boxes cover 0.13 of ``within`` on average (median 0.095), a little more if it is wide.

    Raises:
        ValueError: ``within`` has no area.
    """
    low, high = np.tile(within[:2], 2), np.tile(within[2:], 2)
    width, height = within[2:] - within[:2]
    if not (width > 0 and height > 0):
        raise ValueError(f"no random boxes fit into {within.tolist()}, which has no area")
    shape = width / height
    boxes = np.empty((0, 4))  # in fractions of ``within``
    while len(boxes) < count:
        left, top, across, down = rng.random((4, 2 * count))
        heights = (1 - down) * (1 - top)  # never 0
        least = MIN_AREA / heights
        widths = least + across * (1 - left - least)
        aspect = shape * widths / heights
        good = (aspect >= min(1 / MAX_ASPECT, shape)) & (aspect <= max(MAX_ASPECT, shape))
        good &= left + least <= 1
        drawn = np.stack([left, top, left + widths, top + heights], axis=1)
        boxes = np.concatenate([boxes, drawn[good]])
    return np.clip(low + boxes[:count] * (high - low), low, high)


def write_proposals(
    folder: str | Path,
    *,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    method: str,
    parameters: dict[str, Any],
) -> None:
    """Write the proposals of a data set; ``folder`` appears whole or not at all.

    Args:
        folder: must not exist.
        paths: of the images, relative to the data set's root, with forward slashes.
        boxes, scores: [N_i, 4] and [N_i] per image, in any order; they are sorted by score.
        method: the name for ``--proposals``, not "random".
        parameters: of the method, anything that JSON can hold.

    Raises:
        DataError: ``folder`` exists.
        ValueError: no images, or lists or arrays whose lengths differ.
    """
    if not len(paths) == len(boxes) == len(scores) > 0:
        raise ValueError(f"{len(paths)} paths, {len(boxes)} arrays of boxes, {len(scores)} of scores")
    for path, image_boxes, image_scores in zip(paths, boxes, scores, strict=True):
        if image_boxes.shape != (len(image_scores), 4) or image_scores.ndim != 1:
            raise ValueError(f"{path}: boxes {image_boxes.shape} with scores {image_scores.shape}")

    def best_first() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image_boxes, image_scores in zip(boxes, scores, strict=True):
            order = np.argsort(-image_scores, kind="stable")
            yield image_boxes[order], image_scores[order]

    counts = [len(image_scores) for image_scores in scores]
    stream_proposals(folder, paths=paths, counts=counts, proposals=best_first(), method=method, parameters=parameters)


def stream_proposals(
    folder: str | Path,
    *,
    paths: Sequence[str],
    counts: Sequence[int],
    proposals: Iterable[tuple[np.ndarray, np.ndarray]],
    method: str,
    parameters: dict[str, Any],
    scratch: Path | None = None,
    extra_files: dict[str, str] | None = None,
) -> None:
    """As :func:`write_proposals`, but with the boxes of only one image in memory at a time.

    Args:
        counts: number of boxes per image.
        proposals: (boxes, scores) per image, best first.
        scratch: temporary folder, on the same file system, to be renamed at the end; None: beside ``folder``.
        extra_files: name -> text of further files in the folder.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder}: exists already; remove it or write to another folder")
    meta = {
        "version": FORMAT_VERSION,
        "method": method,
        "parameters": parameters,
        "num_images": len(paths),
        "fingerprint": fingerprint(paths),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(folder, scratch=scratch) as temporary:
        _write_boxes(temporary, counts, proposals)
        _write_paths(temporary, paths)
        for name, text in {**(extra_files or {}), "meta.json": json.dumps(meta, indent=2) + "\n"}.items():
            (temporary / name).write_text(text)


def _write_boxes(folder: Path, counts: Sequence[int], proposals: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    offsets = _offsets(counts)
    np.save(folder / "offsets.npy", offsets, allow_pickle=False)
    with _array_file(folder, "boxes", offsets[-1]) as boxes, _array_file(folder, "scores", offsets[-1]) as scores:
        for count, (image_boxes, image_scores) in zip(counts, proposals, strict=True):
            if not len(image_boxes) == len(image_scores) == count:
                raise ValueError(f"{len(image_boxes)} boxes and {len(image_scores)} scores, but {count} were announced")
            boxes.write(image_boxes.astype(_ARRAYS["boxes"][0]).tobytes())
            scores.write(image_scores.astype(_ARRAYS["scores"][0]).tobytes())


def _array_file(folder: Path, name: str, length: int) -> BinaryIO:
    """A .npy file for ``length`` rows, opened, with its header written."""
    dtype, row_shape = _ARRAYS[name]
    stream = open(folder / f"{name}.npy", "wb")  # noqa: SIM115 - the caller closes it
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (int(length), *row_shape)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream


def _write_paths(folder: Path, paths: Sequence[str]) -> None:
    encoded = [os.fsencode(path) for path in paths]
    np.save(folder / "paths.npy", np.frombuffer(b"".join(encoded), dtype=np.uint8), allow_pickle=False)
    np.save(folder / "path_offsets.npy", _offsets([len(path) for path in encoded]), allow_pickle=False)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def fingerprint(paths: Sequence[str]) -> str:
    """SHA-256 of a list of paths, in hexadecimal."""
    return hashlib.sha256(b"\0".join(os.fsencode(path) for path in paths)).hexdigest()


class ProposalStore:
    """The proposals of a data set, as :func:`write_proposals` left them.

    Opening reads little; pickling (for a worker process) passes only the folder's name.

    Attributes:
        folder: with the files of the module's docstring.
        method, parameters: of the method that made them.

    Raises:
        DataError: no such folder, or a file is missing, damaged or does not match the others; the message names it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder of proposals")
        meta = _read_meta(self.folder / "meta.json")
        self.method: str = meta["method"]
        self.parameters: dict[str, Any] = meta["parameters"]
        self._fingerprint: str = meta["fingerprint"]
        arrays = {name: _open_array(self.folder / f"{name}.npy", *kind) for name, kind in _ARRAYS.items()}
        self._boxes, self._scores, self._paths = arrays["boxes"], arrays["scores"], arrays["paths"]
        self._offsets, self._path_offsets = arrays["offsets"], arrays["path_offsets"]
        self._check_offsets("offsets", meta["num_images"], len(self._boxes))
        self._check_offsets("path_offsets", meta["num_images"], len(self._paths))
        if len(self._scores) != len(self._boxes):
            raise DataError(
                f"{self.folder / 'scores.npy'}: {len(self._scores)} scores for {len(self._boxes)} boxes; "
                "make the proposals again"
            )

    def _check_offsets(self, name: str, num_images: int, end: int) -> None:
        offsets = getattr(self, f"_{name}")
        if len(offsets) != num_images + 1 or offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
            raise DataError(
                f"{self.folder / f'{name}.npy'}: does not divide {end} entries into {num_images} images; "
                "make the proposals again"
            )

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        return ProposalStore, (self.folder,)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._offsets) - 1

    def boxes(self, index: int) -> np.ndarray:
        """[N_i, 4] float32, xyxy in pixels of the upright image ``index``, best first."""
        return np.array(self._boxes[self._offsets[index] : self._offsets[index + 1]])

    def scores(self, index: int) -> np.ndarray:
        """[N_i] float32, in descending order."""
        return np.array(self._scores[self._offsets[index] : self._offsets[index + 1]])

    def path(self, index: int) -> str:
        """The path of image ``index``, relative to the data set's root."""
        return os.fsdecode(self._paths[self._path_offsets[index] : self._path_offsets[index + 1]].tobytes())

    def failed(self) -> list[int]:
        """Indices of the images that could not be read when the proposals were made; they have no proposals.

        Raises:
            DataError: the file that lists them is damaged.
        """
        path = self.folder / FAILED
        if not path.is_file():
            return []
        try:
            failed = {entry["path"] for entry in read_json(path)}
        except (ValueError, TypeError, LookupError):
            raise DataError(f"{path}: damaged; make the proposals again") from None
        return [index for index in range(len(self)) if self.path(index) in failed] if failed else []

    def check(self, paths: Sequence[str], method: str) -> None:
        """Check that these are proposals of ``method`` for exactly the images ``paths`` (relative), in this order.

        Raises:
            DataError: they are not; the message names the actual method, or the first path that differs.
        """
        if method != self.method:
            instead = "leave out --proposal_dir" if self.method == "random" else f"pass --proposals {self.method}"
            raise DataError(f"{self.folder}: made by {self.method}, not {method}; {instead}")
        if fingerprint(paths) == self._fingerprint:
            return
        differing = (i for i in range(min(len(self), len(paths))) if self.path(i) != paths[i])
        first = next(differing, min(len(self), len(paths)))
        stored = repr(self.path(first)) if first < len(self) else "nothing"
        given = repr(paths[first]) if first < len(paths) else "nothing"
        raise DataError(
            f"{self.folder}: made for other images ({len(self)}, the data set has {len(paths)}): the first difference "
            f"is image {first}: {stored} in the proposals, {given} in the data set; make the proposals again"
        )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = read_json(path)
    except NotJson:
        raise DataError(f"{path}: not JSON; make the proposals again") from None
    except Unreadable as error:
        raise DataError(f"{path}: cannot be read ({error}); is this a folder of proposals?") from None
    for key, kind in _META.items():
        if not isinstance(meta, dict) or not isinstance(meta.get(key), kind):
            raise DataError(f'{path}: "{key}" is missing or of the wrong type; make the proposals again')
    if meta["version"] != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {meta['version']}, but this code reads {FORMAT_VERSION}; make the proposals again"
        )
    return meta


def _open_array(path: Path, dtype: type, row_shape: tuple[int, ...]) -> np.ndarray:
    try:
        require_file(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _READER_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: missing or damaged ({reason}); make the proposals again") from None
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim < 1 or array.shape[1:] != row_shape:
        raise DataError(f"{path}: not an array of {np.dtype(dtype)} of the right shape; make the proposals again")
    return array
