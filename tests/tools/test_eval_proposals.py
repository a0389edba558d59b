"""Recall against pycocotools' class-agnostic average recall."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.proposals.store import write_proposals
from tools import eval_proposals
from util.errors import DataError


def scene(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A COCO data set of 15 images with crowds and almost equal objects, and proposals around its objects."""
    rng = np.random.default_rng(0)
    images, annotations, boxes, scores = [], [], [], []
    (folder / "val").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for image in range(15):
        Image.new("RGB", (200, 160)).save(folder / "val" / f"{image}.png")
        images.append({"id": image + 1, "file_name": f"{image}.png", "width": 200, "height": 160})
        corners = rng.uniform(0, 70, (rng.integers(0, 6), 2))
        truth = np.concatenate([corners, corners + rng.uniform(20, 80, corners.shape)], axis=1).astype(np.float32)
        truth = np.concatenate([truth, truth[:2] + np.float32(2)])  # almost the same place
        for number, (x0, y0, x1, y1) in enumerate(truth.tolist()):
            crowd = int(number == 4)
            bbox, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
            entry = {"id": len(annotations) + 1, "image_id": image + 1, "category_id": 1 + number % 2}
            annotations.append({**entry, "bbox": bbox, "area": area, "iscrowd": crowd})
        near = np.repeat(truth, 12, axis=0) + rng.normal(0, 6, (12 * len(truth), 4))
        boxes.append(near[rng.permutation(len(near))].astype(np.float32))
        scores.append(np.sort(rng.random(len(near)))[::-1].astype(np.float32))
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return boxes, scores


def coco_recall(ann_file: Path, boxes: list[np.ndarray], scores: list[np.ndarray], count: int) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ann_file))
        found = [
            {
                "image_id": image + 1,
                "category_id": 1,
                "bbox": [*box[:2].tolist(), *(box[2:].astype(float) - box[:2]).tolist()],
                "score": float(score),
            }
            for image in range(len(boxes))
            for box, score in zip(boxes[image], scores[image], strict=True)
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [count]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.iouThrs = np.array(eval_proposals.THRESHOLDS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"][:, 0, 0, 0]


def test_recall_equals_that_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    boxes, scores = scene(tmp_path)
    paths = [f"{image}.png" for image in range(15)][::-1]  # another order than the labels'
    write_proposals(
        tmp_path / "made", paths=paths, boxes=boxes[::-1], scores=scores[::-1], method="edgebox", parameters={}
    )
    argv = ["--data_path", str(tmp_path), "--proposal_dir", str(tmp_path / "made")]
    eval_proposals.main([*argv, "--json", str(tmp_path / "r.json")])
    recall = json.loads((tmp_path / "r.json").read_text())["recall"][str(tmp_path / "made")]
    for count in (1, 10, 100):
        oracle = coco_recall(tmp_path / "annotations" / "instances_val.json", boxes, scores, count)
        np.testing.assert_allclose(recall[str(count)], oracle, atol=1e-12)
    assert 0 < recall["1"][0] < recall["10"][4] < recall["100"][4] < 1
    assert f"{np.mean(recall['10']):.3f}" in capsys.readouterr().out


def test_one_proposal_finds_one_object() -> None:
    truth = np.array([[0, 0, 10, 10], [0, 0, 10, 9]], dtype=np.float32)
    found = eval_proposals.matches(np.array([[0, 0, 10, 10]], dtype=np.float32), truth)
    assert found.tolist() == [[1] * 10] * 3
    assert eval_proposals.matches(np.empty((0, 4), np.float32), truth).sum() == 0
    assert eval_proposals.matches(truth, np.empty((0, 4), np.float32)).sum() == 0


def test_difficult_objects_do_not_count_and_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    Image.new("RGB", (50, 50)).save(voc / "JPEGImages" / "a.jpg")
    (voc / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    one = "<object><name>x</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>{0}</xmax><ymax>{0}</ymax>"
    size = "<size><width>50</width><height>50</height></size>"
    objects = one.format(0, corners.format(20)) + one.format(1, corners.format(45))
    (voc / "Annotations" / "a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    boxes, scores = [np.array([[0.0, 0, 20, 20]])], [np.ones(1)]
    argv = ["--dataset_file", "voc", "--data_path", str(voc), "--json", str(tmp_path / "r.json"), "--proposal_dir"]
    for path, name in (("JPEGImages/a.jpg", "right"), ("a.jpg", "wrong")):
        write_proposals(tmp_path / name, paths=[path], boxes=boxes, scores=scores, method="random", parameters={})
    eval_proposals.main([*argv, str(tmp_path / "right"), "--plot", str(tmp_path / "r.png")])
    assert json.loads((tmp_path / "r.json").read_text())["recall"][str(tmp_path / "right")]["1"] == [1.0] * 10
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.format == "PNG"
    with pytest.raises(DataError, match=r"no proposals for JPEGImages/a\.jpg"):
        eval_proposals.main([*argv, str(tmp_path / "wrong")])


def test_edge_boxes_find_raccoons(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2.ximgproc")
    from tools import make_proposals

    made, data = str(tmp_path / "made"), str(real_data / "raccoon")
    make_proposals.main(
        ["--dataset_file", "coco", "--split", "val", "--data_path", data, "--output_dir", made, "--max_boxes", "100"]
    )
    argv = ["--data_path", data, "--proposal_dir", made]
    eval_proposals.main([*argv, "--json", str(tmp_path / "r.json")])
    recall = json.loads((tmp_path / "r.json").read_text())["recall"][made]
    assert recall["10"][0] >= 0.80
    assert recall["100"][0] >= 0.92
