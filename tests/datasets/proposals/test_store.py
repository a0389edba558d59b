"""Random boxes: their distribution. The store: what is written is read back, and every kind of damage is an error."""

import json
import pickle
import stat
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from datasets.proposals import store
from datasets.proposals.store import ProposalStore, random_boxes, write_proposals
from util.errors import DataError

PATHS = ["b/1.jpg", "a/ü 2.jpg", "nöthing.png", "last.webp"]
BOXES = [
    np.array([[0, 0, 10, 10], [5, 5, 30.5, 20.25], [1, 2, 3, 4]]),
    np.array([[7, 8, 9, 10]]),
    np.empty((0, 4)),
    np.array([[0, 0, 1, 1], [0, 0, 2, 2]]),
]
SCORES = [np.array([0.2, 0.9, 0.5]), np.array([0.1]), np.empty(0), np.array([0.5, 0.5])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "proposals")
    return tmp_path / "proposals"


def write(folder: Path, **changes) -> None:
    content = {"paths": PATHS, "boxes": BOXES, "scores": SCORES, "method": "edgebox", "parameters": {"alpha": 0.65}}
    write_proposals(folder, **(content | changes))


coordinate = st.floats(-300, 300)
side = st.floats(0.5, 600)


@given(st.integers(0, 2**32 - 1), coordinate, coordinate, side, side, st.integers(0, 20))
def test_random_boxes_keep_their_limits(seed, left, top, width: float, height: float, count: int) -> None:
    within = np.array([left, top, left + width, top + height])
    boxes = random_boxes(np.random.default_rng(seed), within, count)
    assert boxes.shape == (count, 4)
    assert (boxes[:, :2] >= within[:2]).all()
    assert (boxes[:, 2:] <= within[2:]).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    width, height = within[2:] - within[:2]
    assert (sides.prod(axis=1) >= 0.05 * width * height * (1 - 1e-9)).all()
    shape = width / height
    aspect = sides[:, 0] / sides[:, 1]
    assert (aspect >= min(1 / 8, shape) * (1 - 1e-9)).all()
    assert (aspect <= max(8, shape) * (1 + 1e-9)).all()


def areas_in(width: float, height: float, count: int = 40_000) -> np.ndarray:
    """Of random boxes, as fractions."""
    boxes = random_boxes(np.random.default_rng(0), np.array([0.0, 0, width, height]), count)
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / (width * height)


@pytest.mark.parametrize(("size", "mean", "median"), [((1, 1), 0.131, 0.094), ((4, 3), 0.133, 0.096)])
def test_areas_of_random_boxes(size, mean: float, median: float) -> None:
    """Statistics of the authors' rule, rounded, from a million boxes of :func:`plain_boxes`."""
    areas = areas_in(*size)
    assert abs(areas.mean() - mean) < 0.0005 + 3 * areas.std() / 200
    assert abs(np.median(areas) - median) < 0.0005 + 0.0015


def plain_boxes(width: float, height: float, tries: int) -> np.ndarray:
    """The authors' rule, box by box, in a rectangle at the origin: (left, top, width, height) of those kept."""
    rng, kept = Random(5), []
    for _ in range(tries):
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        box_height = rng.uniform(0, height - top)
        narrowest = 0.05 * width * height / box_height
        box_width = rng.uniform(narrowest, width - left)
        if narrowest <= width - left and 1 / 8 <= box_width / box_height <= 8:
            kept.append((left, top, box_width, box_height))
    return np.array(kept)


@pytest.mark.parametrize("size", [(1.0, 1.0), (40.0, 20.0), (30.0, 40.0)])
def test_random_boxes_are_distributed_as_the_authors(size) -> None:
    boxes = random_boxes(np.random.default_rng(1), np.array([0.0, 0, *size]), 10_000)
    ours = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    theirs = plain_boxes(*size, tries=20_000)
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.001


def test_areas_of_random_boxes_without_a_limit_of_the_aspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the mean area with the integral over the distribution.

    The space to the right, the space below, and the fraction of it that the height takes are uniform. Let t be their
    product (density ln(t)^2 / 2): a box exists if t is at least 0.05, and its area is uniform between 0.05 and t.
    """
    monkeypatch.setattr(store, "MAX_ASPECT", np.inf)
    areas = areas_in(1, 1)
    t = (np.arange(200_000) + 0.5) / 200_000 * 0.95 + 0.05
    density = np.log(t) ** 2 / (np.log(t) ** 2).sum()
    mean = ((0.05 + t) / 2 * density).sum()
    square = ((0.05**2 + 0.05 * t + t**2) / 3 * density).sum()
    spread = np.sqrt(square - mean**2)
    assert abs(areas.mean() - mean) < 3 * spread / 200
    assert abs(areas.std() - spread) < 0.02 * spread


@pytest.mark.parametrize("size", [(400.0, 2.0), (2.0, 400.0)])
def test_random_boxes_in_strips(size) -> None:
    """In a strip of aspect 200 almost no box has an aspect within 1/8..8; the strip's own aspect is the limit."""
    boxes = random_boxes(np.random.default_rng(0), np.array([0.0, 0, *size]), 2000)
    sides = boxes[:, 2:] - boxes[:, :2]
    long, short = np.sort(sides / size, axis=1).T[::-1]
    assert (sides.prod(axis=1) >= 0.05 * 800 * (1 - 1e-9)).all()
    assert (sides.max(axis=1) / sides.min(axis=1) <= 200 * (1 + 1e-9)).all()
    assert (short > 0).all()
    assert (long <= 1).all()


def test_random_boxes_need_an_area() -> None:
    with pytest.raises(ValueError, match="no area"):
        random_boxes(np.random.default_rng(0), np.array([3.0, 3, 3, 8]), 1)


def test_store_returns_what_was_written_best_first(folder: Path) -> None:
    store = ProposalStore(folder)
    assert len(store) == 4
    assert (store.method, store.parameters) == ("edgebox", {"alpha": 0.65})
    assert [store.path(i) for i in range(4)] == PATHS
    assert store.boxes(0).tolist() == [[5, 5, 30.5, 20.25], [1, 2, 3, 4], [0, 0, 10, 10]]
    np.testing.assert_allclose(store.scores(0), [0.9, 0.5, 0.2], rtol=1e-6)
    assert store.boxes(1).tolist() == [[7, 8, 9, 10]]
    assert store.boxes(2).shape == (0, 4)
    assert store.boxes(3).tolist() == [[0, 0, 1, 1], [0, 0, 2, 2]]  # equal scores: order kept
    assert store.boxes(0).dtype == store.scores(0).dtype == np.float32


def test_a_data_set_without_any_proposal(tmp_path: Path) -> None:
    write(tmp_path / "p", boxes=[np.empty((0, 4))] * 4, scores=[np.empty(0)] * 4)
    assert ProposalStore(tmp_path / "p").boxes(3).shape == (0, 4)


def test_store_travels_to_workers_by_its_name(folder: Path) -> None:
    data = pickle.dumps(ProposalStore(folder))
    assert len(data) < 500
    assert pickle.loads(data).boxes(1).tolist() == [[7, 8, 9, 10]]


def test_folder_is_readable_by_others(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_existing_folder_is_left_alone(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match="exists already"):
        write(folder, method="selective_search")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write(tmp_path / "p", parameters={"not JSON": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"paths": PATHS[:3]}, {"paths": [], "boxes": [], "scores": []}, {"scores": [*SCORES[:3], np.zeros(3)]}]
)
def test_lists_that_do_not_belong_together(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(ValueError, match="boxes"):
        write(tmp_path / "p", **changes)
    assert list(tmp_path.iterdir()) == []


def test_check_accepts_its_own_images(folder: Path) -> None:
    ProposalStore(folder).check(PATHS, "edgebox")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["b/1.jpg", "a/3.jpg", *PATHS[2:]], "image 1: 'a/ü 2.jpg' in the proposals, 'a/3.jpg' in the data set"),
        (PATHS[:3], r"\(4, the data set has 3\).*image 3: 'last.webp' in the proposals, nothing in"),
        ([*PATHS, "z.jpg"], r"\(4, the data set has 5\).*image 4: nothing in the proposals, 'z.jpg' in"),
        (PATHS[::-1], "image 0: 'b/1.jpg' in the proposals, 'last.webp' in"),
    ],
)
def test_check_names_the_first_difference(folder: Path, paths: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ProposalStore(folder).check(paths, "edgebox")


def test_check_names_the_other_method(folder: Path) -> None:
    with pytest.raises(DataError, match=r"made by edgebox, not selective_search"):
        ProposalStore(folder).check(PATHS, "selective_search")


FILES = ["boxes.npy", "scores.npy", "offsets.npy", "paths.npy", "path_offsets.npy", "meta.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage", "pickle", "folder"])
def test_damage_is_an_error_that_names_the_file(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        pickled = pickle.dumps({"a": 1})
        half = content[: len(content) // 2 + len(content) // 3]
        path.write_bytes({"empty": b"", "half": half, "garbage": bytes(range(200)), "pickle": pickled}[damage])
    with pytest.raises(DataError) as caught:
        ProposalStore(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def complaint(folder: Path) -> str:
    try:
        ProposalStore(folder).boxes(0)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FILES[:5])
@pytest.mark.parametrize("flipped_bits", [0x01, 0x15, 0x80])
def test_every_damaged_byte_of_a_header_is_one_line_or_harmless(folder: Path, name: str, flipped_bits: int) -> None:
    path = folder / name
    content = path.read_bytes()
    messages = []
    for position in range(100):
        damaged = bytearray(content)
        damaged[position] ^= flipped_bits
        path.write_bytes(damaged)
        messages.append(complaint(folder))
    assert all("\n" not in message for message in messages)
    assert sum(str(folder) in message for message in messages) > 40


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("boxes.npy", np.zeros((6, 4))),  # float64
        ("boxes.npy", np.zeros((6, 5), np.float32)),
        ("boxes.npy", np.zeros((), np.float32)),
        ("boxes.npy", np.zeros((5, 4), np.float32)),  # fewer than the offsets say
        ("scores.npy", np.zeros(5, np.float32)),
        ("offsets.npy", np.array([0, 3, 2, 4, 6])),  # falls
        ("offsets.npy", np.array([0, 3, 6])),
        ("offsets.npy", np.empty(0, np.int64)),
        ("path_offsets.npy", np.array([1, 3, 4, 5, 6])),
    ],
)
def test_arrays_at_odds(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / name, array)
    with pytest.raises(DataError, match="make the proposals again"):
        ProposalStore(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "format version 99, but this code reads 1"),
        ({"method": None}, '"method" is missing or of the wrong type'),
        ({"num_images": "4"}, '"num_images" is missing or of the wrong type'),
        ({"num_images": -1}, "into -1 images"),
    ],
)
def test_meta_at_odds(folder: Path, change: dict, message: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(DataError, match=message):
        ProposalStore(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ProposalStore(tmp_path / "nowhere")
