"""Edges on shapes with known outlines; methods on scenes with one obvious object; repeated runs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.proposals.methods import METHODS, EdgeBoxes, RandomBoxes, SelectiveSearch, colour_edges
from util.errors import DataError

pytest.importorskip("cv2.ximgproc")


def one_object(seed: int = 0) -> Image.Image:
    """A bright rectangle, xyxy 60, 40, 150, 120, on noise."""
    pixels = np.random.default_rng(seed).integers(40, 60, (200, 260, 3), dtype=np.uint8)
    pixels[40:120, 60:150] = (220, 180, 30)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 120, 150])
def test_edges_are_thin_and_know_the_direction_across(degrees: int) -> None:
    """A straight edge through the middle, its normal at ``degrees`` from the x axis towards the y axis."""
    angle = np.radians(degrees)
    y, x = np.indices((101, 101)) - 50.0
    distance = x * np.cos(angle) + y * np.sin(angle)
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[..., 1] = np.clip(128 + 60 * distance, 0, 255).astype(np.uint8)
    edges, orientation = colour_edges(pixels)
    inner = np.hypot(x, y) < 35
    assert edges.dtype == orientation.dtype == np.float32
    assert np.abs(distance[(edges > 0.5) & inner]).max() < 1.6
    assert 50 < ((edges > 0.5) & inner).sum() < 150
    off = np.abs(orientation[(edges > 0.5) & inner] - angle)
    assert np.minimum(off, np.pi - off).max() < 0.1
    assert edges.min() >= 0
    assert edges.max() == 1
    assert orientation.min() >= 0
    assert orientation.max() < np.pi


def test_edges_between_equally_bright_colours_are_seen() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20] = (200, 0, 0)
    pixels[:, 20:] = (0, 200, 0)
    edges, _ = colour_edges(pixels)
    assert edges[5:35, 19:21].max(axis=1).min() == 1
    assert edges[:, :16].max() == 0


def test_a_plain_picture_has_no_edges() -> None:
    assert colour_edges(np.full((20, 30, 3), 77, np.uint8))[0].max() == 0


@pytest.mark.parametrize(("method", "among"), [(EdgeBoxes(20), 1), (SelectiveSearch(20), 20)])
def test_the_object_is_found(method, among: int) -> None:
    boxes, scores = method(one_object(), 0)
    assert np.abs(boxes[:among] - [60, 40, 150, 120]).max(axis=1).min() < 6
    assert (np.diff(scores) <= 0).all()
    assert boxes.dtype == scores.dtype == np.float32


def test_large_pictures_are_searched_reduced_and_boxes_fit_the_original() -> None:
    large = one_object().resize((2600, 2000), Image.Resampling.NEAREST)
    boxes, _ = EdgeBoxes(5, size=200)(large, 0)
    np.testing.assert_allclose(boxes[0], [600, 400, 1500, 1200], atol=60)


@pytest.mark.parametrize("name", list(METHODS))
def test_boxes_do_not_depend_on_what_came_before(name: str) -> None:
    method = METHODS[name](30)
    first = method(one_object(), 3)
    method(one_object(1).rotate(90), 4)
    again = method(one_object(), 3)
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_random_boxes_differ_by_seed_and_image() -> None:
    image = one_object()
    sets = [RandomBoxes(5, seed)(image, index)[0] for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert all((sets[a] != sets[b]).any() for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (8, 8), (8, 900), (33000, 9)])
def test_tiny_and_narrow_pictures(name: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    boxes, scores = METHODS[name](10)(Image.fromarray(pixels), 0)
    assert boxes.shape == (len(scores), 4)
    assert (boxes >= 0).all()
    assert (boxes <= np.tile(size, 2)).all()


FOREST_OPTIONS = {
    "stride": 2, "shrinkNumber": 2, "patchSize": 32, "patchInnerSize": 16, "numberOfGradientOrientations": 4,
    "gradientSmoothingRadius": 0, "regFeatureSmoothingRadius": 2, "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4, "selfsimilarityGridSize": 5, "numberOfTrees": 1, "numberOfTreesToEvaluate": 1,
}  # fmt: skip


def write_forest(path: Path) -> None:
    """A structured forest of one tree with one question: is the gradient steep in the middle of a 32 x 32 patch?

    If it is, the four pixels there are edges. The features are on a 16 x 16 grid, channel by channel: three of the
    colour, then the magnitude of the gradient. Each entry of ``edgeBins`` counts 1 / 32.
    """
    cv2 = pytest.importorskip("cv2")
    middle = [7 * 16 + 7, 7 * 16 + 8, 8 * 16 + 7, 8 * 16 + 8]
    tree = {
        "childs": [2, 0, 0],
        "featureIds": [3 * 256 + 8 * 16 + 8, 0, 0],
        "thresholds": [0.1, 0.0, 0.0],
        "edgeBoundaries": [0, 0, 0, 4 * 32],
        "edgeBins": middle * 32,
    }
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.startWriteStruct("options", cv2.FileNode_MAP)
    for name, value in FOREST_OPTIONS.items():
        storage.write(name, value)
    storage.endWriteStruct()
    for name, values in tree.items():
        storage.startWriteStruct(name, cv2.FileNode_SEQ)
        storage.startWriteStruct("", cv2.FileNode_SEQ | cv2.FileNode_FLOW)
        for value in values:
            storage.write("", value)
        storage.endWriteStruct()
        storage.endWriteStruct()
    storage.release()


def test_the_edges_of_a_structured_forest_are_searched(tmp_path: Path) -> None:
    write_forest(tmp_path / "model.yml")
    method = EdgeBoxes(20, edge_model=str(tmp_path / "model.yml"))
    picture = Image.new("RGB", (260, 200), (50, 50, 50))  # even faint noise is steep to this tree
    picture.paste((220, 180, 30), (60, 40, 150, 120))
    boxes, scores = method(picture, 0)
    assert np.abs(boxes[0] - [60, 40, 150, 120]).max() < 8  # its edges are a few pixels wide
    assert (scores > 0).all()
    assert method.parameters()["edges"] == "structured forest"
    assert not len(method(Image.new("RGB", (90, 70), (90, 90, 90)), 0)[0])


def test_a_file_that_is_no_edge_model(tmp_path) -> None:
    for text in ("nothing", "", "%YAML:1.0\n---\nother: 1\n"):
        (tmp_path / "model.yml").write_text(text)
        with pytest.raises(DataError, match=r"model\.yml: not a structured forest"):
            EdgeBoxes(5, edge_model=str(tmp_path / "model.yml")).parameters()
