"""Pictures: what is drawn lies where it should; logs: read as they are, broken lines named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from util import plot_utils
from util.errors import DataError, UserError

GREY = (128, 128, 128)


def pixels_of(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """[h, w] bool: where ``picture`` has exactly this colour."""
    return (np.asarray(picture) == colour).all(-1)


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("zoom", [1, 2])
def test_boxes_are_drawn_where_they_are(zoom: int) -> None:
    image = Image.new("RGB", (100, 80), GREY)
    boxes = torch.tensor([[10.0, 20, 40, 60], [50, 5, 90, 75]])
    picture = plot_utils.draw_boxes(image, boxes, colours=[4, 9], zoom=zoom)
    assert picture.size == (100 * zoom, 80 * zoom)
    for box, colour in zip(boxes, (4, 9), strict=True):
        assert extent(pixels_of(picture, plot_utils.colour_of(colour))) == (box * zoom).tolist()
    assert picture.getpixel((25 * zoom, 40 * zoom)) == GREY  # an outline, not a filled box
    assert pixels_of(image, GREY).all()  # the original is untouched


def test_no_boxes_no_change() -> None:
    image = Image.new("RGB", (30, 20), GREY)
    assert plot_utils.draw_boxes(image, np.zeros((0, 4)), texts=[]).tobytes() == image.tobytes()


def test_every_box_needs_its_text() -> None:
    with pytest.raises(ValueError, match="zip"):
        plot_utils.draw_boxes(Image.new("RGB", (30, 20)), [[1, 1, 9, 9], [2, 2, 5, 5]], texts=["one"])


@pytest.mark.parametrize("corner", [(60, 60), (0, 0)])
def test_texts_of_boxes_that_begin_at_one_corner_are_all_seen(corner: tuple[int, int]) -> None:
    boxes = [[*corner, 180, 180], [*corner, 181, 170], [*corner, 150, 190]]
    picture = plot_utils.draw_boxes(Image.new("RGB", (200, 200)), boxes, texts=["0", "1", "2"])
    plain = plot_utils.draw_boxes(Image.new("RGB", (200, 200)), boxes)
    for index in range(3):
        colour = plot_utils.colour_of(index)
        filled = [(np.asarray(drawn) == colour).all(-1).sum() for drawn in (picture, plain)]
        assert filled[0] > filled[1] + 30  # a patch of the box's colour behind its text


def test_texts_leave_most_of_a_small_picture_free() -> None:
    boxes = [[2, 2, 30, 38], [10, 5, 50, 20], [12, 20, 40, 39]]
    texts = ["cat 0.90", "cat 0.80", "dog 0.70"]
    picture, plain = (
        plot_utils.draw_boxes(Image.new("RGB", (53, 40), GREY), boxes, texts=written) for written in (texts, None)
    )
    changed = (np.asarray(picture) != np.asarray(plain)).any(-1).mean()
    assert 0.05 < changed < 0.3


def test_boxes_turned_inside_out_or_outside_do_not_crash() -> None:
    boxes = [[20, 20, 10, 10], [-50, -50, -20, -20], [5, 5, 500, 500]]
    picture = plot_utils.draw_boxes(Image.new("RGB", (60, 60)), boxes, texts=["a", "b", "c"])
    assert picture.size == (60, 60)


@pytest.mark.parametrize("corner", [(0, 0), (100, 50), (199, 119), (-30, 500)])
def test_text_stays_inside_the_picture(corner: tuple[int, int]) -> None:
    picture = Image.new("RGB", (200, 120), GREY)
    draw = plot_utils.ImageDraw.Draw(picture)
    x0, y0, x1, y1 = plot_utils.write_text(draw, corner, "bottle 0.93", colour=(255, 0, 0), size=12)
    assert 0 <= x0 < x1 <= 200
    assert 0 <= y0 < y1 <= 120
    assert (np.asarray(picture)[..., 1] > 150).sum() > 30  # letters: white on red
    left, top, right, bottom = extent(~pixels_of(picture, GREY))
    assert left >= x0
    assert top >= y0
    assert right <= x1 + 1
    assert bottom <= y1 + 1


@pytest.mark.parametrize(("score", "text"), [(None, "mug"), (0.456, "mug 0.46"), (1, "mug 1.00")])
def test_describe(score: float | None, text: str) -> None:
    assert plot_utils.describe("mug", score) == text


def test_neighbouring_colours_are_far_apart() -> None:
    colours = np.array([plot_utils.colour_of(i) for i in range(30)], dtype=float)
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 100
    assert len(np.unique(colours, axis=0)) == 30


def test_contact_sheet_shows_every_picture_whole() -> None:
    sizes = [(10, 20), (30, 10), (20, 20), (10, 10), (15, 5)]
    colours = [plot_utils.colour_of(i) for i in range(5)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    sheet = plot_utils.contact_sheet(pictures, columns=2, gap=3)
    assert sheet.size == (3 + 20 + 3 + 30 + 3, 3 + 20 + 3 + 20 + 3 + 5 + 3)
    for (wide, tall), colour in zip(sizes, colours, strict=True):
        left, top, right, bottom = extent(pixels_of(sheet, colour))
        assert (right - left, bottom - top) == (wide, tall)


def test_contact_sheet_captions_and_errors() -> None:
    picture = Image.new("RGB", (100, 40), GREY)
    sheet = plot_utils.contact_sheet([picture, picture], columns=2, captions=["left", "right"])
    assert sheet.height > 40 + 10
    caption = np.asarray(sheet)[: sheet.height - 46]
    assert (caption > 150).all(-1).sum() > 30  # letters: white on dark
    with pytest.raises(ValueError, match="at least one"):
        plot_utils.contact_sheet([], columns=2)
    with pytest.raises(ValueError, match="zip"):
        plot_utils.contact_sheet([picture, picture], columns=2, captions=["left"])


def test_detections_stand_beside_the_truth() -> None:
    image = Image.new("RGB", (120, 120), GREY)
    truth = {"boxes": torch.tensor([[10.0, 40, 60, 90]]), "labels": torch.tensor([3])}
    found = {
        "boxes": torch.tensor([[20.0, 50, 70, 100], [80, 80, 110, 110], [5, 80, 15, 110]]),
        "labels": torch.tensor([3, 5, 7]),
        "scores": torch.tensor([0.9, 0.1, 0.9]),  # the second is below the threshold, the third of no category
    }
    picture = plot_utils.draw_detections(image, truth, found, {3: "mug", 5: "leaf"}, threshold=0.5)
    half = picture.width // 2
    seen = pixels_of(picture, plot_utils.colour_of(3))
    truth_extent, found_extent = extent(seen[:, :half]), extent(seen[:, half:])
    assert (truth_extent[2] - 60, truth_extent[3] - 90) == (6, picture.height - 120 - 6)
    assert (found_extent[2] + half - 70, found_extent[3] - 100) == (6 + 120 + 6, picture.height - 120 - 6)
    for label in (5, 7):
        assert not pixels_of(picture, plot_utils.colour_of(label)).any()


def test_two_views_show_each_region_once_in_each_view_and_each_crop_below() -> None:
    views = [Image.new("RGB", (200, 150), GREY), Image.new("RGB", (200, 150), (90, 90, 90))]
    regions = np.array([[[20, 30, 120, 130], [130, 40, 190, 140]], [[40, 30, 140, 130], [5, 60, 30, 140]]])
    crops = [[Image.new("RGB", (16, 16), (i * 40, 0, 200)) for i in range(2)] for _ in range(2)]
    picture = plot_utils.draw_two_views(views, regions, crops, crop_side=40)
    plain = plot_utils.draw_two_views(views, regions)
    assert picture.height > plain.height + 40
    for region in range(2):
        seen = pixels_of(plain, plot_utils.colour_of(region))
        for view in range(2):
            offset = 6 + view * 206
            left, top, right, bottom = extent(seen[6:, offset : offset + 200])
            assert [left, right, bottom] == regions[view, region, [0, 2, 3]].tolist()
            assert -20 <= top - regions[view, region, 1] < 0  # the number stands above the box
        assert pixels_of(picture, (region * 40, 0, 200)).sum() > 2 * 20 * 20  # one crop below each view


@pytest.fixture
def log(tmp_path: Path) -> Path:
    records = [
        {"kind": "train", "step": 50, "lr": 1e-4, "loss": 9.0, "loss_ce": 1.0},
        {"kind": "eval", "step": 60, "AP": 0.1, "AP50": 0.2, "AR1": 0.3},
        {"kind": "train", "step": 100, "lr": 1e-4, "loss": 7.5, "loss_ce": 0.5},
    ]
    path = tmp_path / "log.txt"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_curves_of_a_log(log: Path) -> None:
    assert plot_utils.curves(plot_utils.read_log(log)) == {
        "loss": ([50, 100], [9.0, 7.5]),
        "loss_ce": ([50, 100], [1.0, 0.5]),
        "AP": ([60], [0.1]),
        "AP50": ([60], [0.2]),
    }


def test_a_last_line_that_is_still_being_written_is_left_out(log: Path) -> None:
    before = plot_utils.read_log(log)
    with log.open("a") as file:
        file.write('{"kind": "train", "st')
    assert plot_utils.read_log(log) == before


@pytest.mark.parametrize("line", ["not json", "3", '["kind"]', '{"kind": "train"}'])
def test_broken_lines_are_named(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"log\.txt, line 4: not"):
        plot_utils.read_log(log)


def test_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.txt: no such log file"):
        plot_utils.read_log(tmp_path / "log.txt")


def test_plotted_curves_are_a_png_of_several_runs(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.png"
    plot_utils.plot_curves({"pretrained": log, "scratch": log}, out)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20  # lines, letters, a grid
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.txt"]


def test_a_log_without_losses_or_scores_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = tmp_path / "log.txt"
    log.write_text("")
    with pytest.raises(DataError, match=r"log\.txt: no losses"):
        plot_utils.plot_curves({"run": log}, tmp_path / "curves.png")


def test_missing_matplotlib_is_told_in_one_line(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        plot_utils.plot_curves({"run": log}, tmp_path / "curves.png")
