"""main_predict.py as a user runs it."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import main_finetune
import main_predict
from models.checkpoints.open import restore
from models.finder import RegionFinder
from models.predictor import load_detector
from tests.conftest import ROOT
from tests.predicting import save_predicting, save_pretrained, write_images
from tests.tiny import write_data_set
from tests.util.test_run_lock import HOLD
from tools import convert_checkpoint
from util.errors import CheckpointError, DataError, UserError
from util.script import run_script

DETECTORS = ["vanilla", "conditional", "deformable", "dab"]
SIZES = [(96, 64), (96, 64), (64, 96), (130, 80), (40, 40), (96, 64)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_predicting("conditional", tmp_path_factory.mktemp("checkpoint") / "c.pth")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "images"
    write_images(folder, SIZES)
    return folder


def predict(out: Path, checkpoint: Path, *argv: object) -> dict:
    """Run main_predict.py; returns predictions.json."""
    flags = ["--resume", checkpoint, "--output_dir", out, "--num_workers", 0, "--device", "cpu", "--threshold", 0.2]
    main_predict.main([str(value) for value in (*flags, *argv)])
    return json.loads((out / "predictions.json").read_text())


def test_what_it_writes_stands_alone(checkpoint, images, tmp_path):
    found = predict(tmp_path / "out", checkpoint, images)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "out" / "predictions.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["square", "brick"]
    assert [(image["width"], image["height"]) for image in coco.loadImgs(coco.getImgIds())] == SIZES
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["annotations"]) > 20
    model = load_detector(checkpoint, device="cpu")
    name_of_id = {category["id"]: category["name"] for category in found["categories"]}
    rows = iter(rows)
    for image in found["images"]:
        detections = model(image["file_name"], threshold=0.2)
        annotations = coco.imgToAnns[image["id"]]
        assert len(detections) == len(annotations)
        for annotation, expected in zip(annotations, detections.to_coco(image["id"]), strict=True):
            row = next(rows)
            assert annotation["category_id"] == expected["category_id"]
            assert annotation["score"] == pytest.approx(expected["score"], abs=1e-6)
            np.testing.assert_allclose(annotation["bbox"], expected["bbox"], atol=2e-3)
            assert (row["file"], row["class"]) == (image["file_name"], name_of_id[annotation["category_id"]])
            x, y, width, height = annotation["bbox"]
            corners = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
            np.testing.assert_allclose(corners, [x, y, x + width, y + height], atol=2e-3)


def test_pictures_have_the_names_and_sizes_of_the_images(checkpoint, images, tmp_path):
    shutil.copytree(images, tmp_path / "in" / "deep")
    Image.open(images / "0.png").save(tmp_path / "in" / "bitmap.bmp")
    predict(tmp_path / "out", checkpoint, tmp_path / "in")
    pictures = tmp_path / "out" / "pictures"
    assert Image.open(pictures / "bitmap.bmp.png").size == SIZES[0]
    for index, size in enumerate(SIZES):
        with Image.open(pictures / "deep" / f"{index}.png") as picture:
            assert picture.size == size
            assert (np.asarray(picture) != np.asarray(Image.open(images / f"{index}.png"))).any()
    predict(tmp_path / "bare", checkpoint, tmp_path / "in", "--no_pictures")
    assert not (tmp_path / "bare" / "pictures").exists()


def test_images_are_named_in_many_ways(checkpoint, images, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text(f"{images}/1.png\n\n{images}/[23].png\n")
    found = predict(tmp_path / "a", checkpoint, f"{images}/0.*", f"@{tmp_path}/list.txt", images / "3.png", images)
    assert [Path(image["file_name"]).name for image in found["images"]] == [f"{index}.png" for index in range(6)]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(images / "1.png", other / "0.png")
    predict(tmp_path / "b", checkpoint, images / "0.png", other / "0.png")
    pictures = sorted(path for path in (tmp_path / "b" / "pictures").rglob("*.png"))
    assert len(pictures) == 2  # both have one name, so they are named by their paths
    assert pictures[1].parts[-2:] == ("other", "0.png")


def test_sorted_batches_equal_single_images_where_no_padding_is_needed(checkpoint, tmp_path):
    """Sizes alternate; after sorting, every batch has a single size."""
    write_images(tmp_path / "in", [(96, 64), (200, 100)] * 4)
    alone = predict(tmp_path / "alone", checkpoint, tmp_path / "in", "--no_pictures")
    sorted_ = predict(tmp_path / "sorted", checkpoint, tmp_path / "in", "--no_pictures", "--batch_size", 4)
    assert len(alone["annotations"]) > 20
    for one, two in zip(alone["annotations"], sorted_["annotations"], strict=True):
        assert (one["image_id"], one["category_id"]) == (two["image_id"], two["category_id"])
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        np.testing.assert_allclose(one["bbox"], two["bbox"], atol=1e-2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_and_ends_alike(checkpoint, images, tmp_path, workers, capsys):
    flags = [images, "--num_workers", workers]
    predict(tmp_path / "whole", checkpoint, *flags)
    predict(tmp_path / "out", checkpoint, *flags)
    journal = tmp_path / "out" / "predictions.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # two images are done, the third was being written
    (tmp_path / "out" / "predictions.json").unlink()
    capsys.readouterr()
    predict(tmp_path / "out", checkpoint, *flags)
    told = capsys.readouterr().out
    assert "2 of 6 images are done already" in told
    assert "4 images in" in told
    for name in ("predictions.json", "predictions.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment(checkpoint, tmp_path):
    write_images(tmp_path / "in", [(300, 200)] * 60)
    flags = ["--resume", checkpoint, "--num_workers", 1, "--threshold", 0.2, tmp_path / "in"]
    command = [sys.executable, "main_predict.py", *map(str, flags), "--output_dir"]
    root = Path(main_predict.__file__).parent
    subprocess.run([*command, tmp_path / "whole"], cwd=root, check=True)
    journal = tmp_path / "out" / "predictions.jsonl"
    for lines in (2, 15, 40):
        process = subprocess.Popen([*command, tmp_path / "out"], cwd=root, start_new_session=True)
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, tmp_path / "out"], cwd=root, check=True)
    assert (tmp_path / "out" / "predictions.json").read_bytes() == (
        tmp_path / "whole" / "predictions.json"
    ).read_bytes()


def test_images_that_cannot_be_read_are_listed_and_tried_again(checkpoint, images, tmp_path, capsys):
    folder = tmp_path / "in"
    shutil.copytree(images, folder)
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    argv = [str(folder), str(folder / "notes.txt"), "--resume", str(checkpoint), "--num_workers", "0"]
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: main_predict.main([*argv, "--output_dir", str(tmp_path / "out")]))
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "1.png: not an image, or damaged" in out
    assert "notes.txt: not an image of any known format" in out
    assert err.strip() == "error: 2 of 7 images could not be read, as listed above; the others are done"
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(found["images"]) == 5
    assert [Path(entry["file_name"]).name for entry in found["info"]["failed"]] == ["1.png", "notes.txt"]
    (folder / "1.png").write_bytes(whole)
    (folder / "notes.txt").unlink()
    Image.open(images / "0.png").save(folder / "notes.txt", format="png")
    main_predict.main([*argv, "--output_dir", str(tmp_path / "out")])
    assert "5 of 7 images are done already" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 7


@pytest.mark.parametrize(
    ("argv", "error", "told"),
    [
        (["nowhere"], DataError, "nowhere: no such file or folder"),
        (["*.nothing"], DataError, "no file matches"),
        (["@nowhere.txt"], DataError, "@nowhere.txt: not a text file"),
        (["EMPTY"], DataError, "no images in this folder"),
        (["IMAGES", "--classes", "squar"], UserError, "did you mean square?"),
        (["IMAGES", "--classes", "zebra"], UserError, "it knows square, brick"),
        (["IMAGES", "--threshold", "2"], UserError, "--threshold 2.0: must lie in"),
        (["IMAGES", "--batch_size", "0"], UserError, "--batch_size 0: must be at least 1"),
        (
            ["IMAGES", "--query", "IMAGES/0.png", "0", "0", "9", "9"],
            CheckpointError,
            "detects by itself; --query",
        ),
        (["IMAGES", "--query", "IMAGES/0.png", "0", "0", "9", "x"], UserError, "must be numbers of pixels"),
    ],
)
def test_bad_input(checkpoint, images, tmp_path, argv, error, told):
    (tmp_path / "empty").mkdir()
    argv = [value.replace("IMAGES", str(images)).replace("EMPTY", str(tmp_path / "empty")) for value in argv]
    with pytest.raises(error, match=told):
        main_predict.main([*argv, "--resume", str(checkpoint), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_a_folder_with_other_predictions_is_left_alone(checkpoint, images, tmp_path):
    predict(tmp_path / "out", checkpoint, images)
    before = (tmp_path / "out" / "predictions.json").read_bytes()
    with pytest.raises(UserError, match=r"holds another run's predictions \(max_detections differs\)"):
        predict(tmp_path / "out", checkpoint, images, "--max_detections", 3)
    other = save_predicting("conditional", tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"another run's predictions \(detector differs\)"):
        predict(tmp_path / "out", other, images)
    with pytest.raises(UserError, match=r"another run's predictions \(images differs\)"):
        predict(tmp_path / "out", checkpoint, images / "0.png")
    assert (tmp_path / "out" / "predictions.json").read_bytes() == before
    (tmp_path / "out" / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds a predictions\.json without"):
        predict(tmp_path / "out", checkpoint, images)


def test_classes_and_the_number_of_detections_are_limited(checkpoint, images, tmp_path):
    all_ = predict(tmp_path / "all", checkpoint, images, "--no_pictures")["annotations"]
    found = predict(tmp_path / "out", checkpoint, images, "--no_pictures", "--classes", "brick", "--max_detections", 2)
    assert [category["name"] for category in found["categories"]] == ["brick"]
    for image in found["images"]:
        wanted = [a["score"] for a in all_ if (a["image_id"], a["category_id"]) == (image["id"], 20)][:2]
        assert [a["score"] for a in found["annotations"] if a["image_id"] == image["id"]] == wanted


def _moved(box: list[float], by: int) -> list[float]:
    """A box (xywh) a little to the right, inside the smallest image, which is 80 pixels wide and high."""
    x1, y1 = (min(max(value, 0), 60) for value in box[:2])
    x2, y2 = (min(start + max(length, 9), 80) for start, length in zip((x1, y1), box[2:], strict=True))
    return [x1 + by, y1, x2 - x1 - by, y2 - y1]


def test_scores_are_those_of_the_evaluation(checkpoint, tmp_path):
    """pycocotools and ``main_finetune.py --eval`` agree on predictions.json; the truth is close to the detections."""
    from pycocotools.cocoeval import COCOeval

    root = write_data_set(tmp_path / "data")
    flags = ["--no_pictures", "--threshold", "0", "--eval_size", "64"]
    found = predict(tmp_path / "out", checkpoint, root / "val", *flags)
    annotations = root / "annotations" / "instances_val.json"
    content = json.loads(annotations.read_text())
    name_of_id = {image["id"]: Path(image["file_name"]).name for image in found["images"]}
    id_of_file = {image["file_name"]: image["id"] for image in content["images"]}
    content["annotations"] = [
        {**entry, "image_id": id_of_file[name_of_id[entry["image_id"]]], "bbox": _moved(entry["bbox"], index % 3)}
        for index, entry in enumerate(found["annotations"][::4])
    ]
    annotations.write_text(json.dumps(content))
    argv = ["--resume", checkpoint, "--eval", "--data_path", root, "--output_dir", tmp_path / "eval"]
    main_finetune.main(
        [*map(str, argv), "--num_workers", "0", "--device", "cpu", "--eval_size", "64", "--batch_size", "1"]
    )
    wanted = json.loads((tmp_path / "eval" / "eval.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(root / "annotations" / "instances_val.json")
        results = [{**entry, "image_id": id_of_file[name_of_id[entry["image_id"]]]} for entry in found["annotations"]]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert wanted["AR100"] > 0
    assert evaluation.stats[0] == pytest.approx(wanted["AP"], abs=1e-4)
    assert evaluation.stats[8] == pytest.approx(wanted["AR100"], abs=1e-4)


@pytest.mark.parametrize("detr", DETECTORS)
def test_hugging_face_finds_the_same(detr, tmp_path):
    """The images are not resized, because transformers' resizing rounds differently."""
    pytest.importorskip("safetensors")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    checkpoint = save_predicting(detr, tmp_path / "c.pth", eval_size=64, eval_max_size=160)
    (path,) = write_images(tmp_path / "in", [(96, 64)])
    convert_checkpoint.main([str(checkpoint), str(tmp_path / "hf"), "--to", "hf"])
    found = predict(tmp_path / "out", checkpoint, path, "--threshold", "0", "--no_pictures")["annotations"]
    same = predict(tmp_path / "again", tmp_path / "hf", path, "--threshold", "0", "--no_pictures")["annotations"]
    assert [entry["bbox"] for entry in same] == [entry["bbox"] for entry in found]

    pipeline = transformers.pipeline("object-detection", model=str(tmp_path / "hf"), device="cpu")
    theirs = pipeline(str(path), threshold=0.0)
    with torch.no_grad():
        outputs = pipeline.model(**pipeline.image_processor(Image.open(path), return_tensors="pt"))
    (exact,) = pipeline.image_processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(64, 96)])
    boxes = exact["boxes"].detach().numpy()
    name_of_id = {0: "square", 1: "brick"}
    assert len(found) == len(theirs) == len(boxes)
    order = np.argsort(-exact["scores"].detach().numpy(), kind="stable")
    for entry, place in zip(found, order, strict=True):
        x, y, width, height = entry["bbox"]
        assert entry["score"] == pytest.approx(exact["scores"][place].item(), abs=1e-3)
        np.testing.assert_allclose([x, y, x + width, y + height], boxes[place], atol=1e-3 * 96)
    by_score = sorted(theirs, key=lambda entry: -entry["score"])
    for entry, other in zip(found, by_score, strict=True):
        assert entry["score"] == pytest.approx(other["score"], abs=1e-3)
    assert {other["label"] for other in theirs} <= set(name_of_id.values())


@pytest.mark.parametrize("detr", ["vanilla", "conditional"])
def test_pretraining_by_detreg_finds_regions(detr, tmp_path, images):
    checkpoint = save_pretrained("detreg", detr, tmp_path / "pre.pth")
    found = predict(tmp_path / "out", checkpoint, images, "--threshold", 0)
    assert found["categories"] == [{"id": 1, "name": "region"}]
    for image in found["images"]:
        scores = [entry["score"] for entry in found["annotations"] if entry["image_id"] == image["id"]]
        assert len(scores) == 10  # one per query
        assert scores == sorted(scores, reverse=True)


PRETRAINED = [("siamese", "conditional"), ("siamese", "deformable"), ("siamese", "dab"), ("updetr", "vanilla")]


@pytest.mark.parametrize(("method", "detr"), PRETRAINED)
def test_pretraining_finds_what_is_shown(method, detr, tmp_path, images):
    checkpoint = save_pretrained(method, detr, tmp_path / "pre.pth", hidden_dim=64)
    with pytest.raises(CheckpointError, match=r"detects nothing by itself: show it a region with .* --query"):
        predict(tmp_path / "out", checkpoint, images)
    with pytest.raises(UserError, match="not a box X1 Y1 X2 Y2 inside the image, which is 96 pixels wide and 64 high"):
        predict(tmp_path / "out", checkpoint, "--query", images / "0.png", 5, 5, 20, 70, images)
    query = ["--query", images / "0.png", 24, 16, 48, 32]
    other = ["--query", images / "2.png", 0, 0, 64, 96]
    found = predict(tmp_path / "out", checkpoint, *query, *other, images, "--threshold", 0)
    assert found["categories"] == [{"id": 1, "name": "query 1"}, {"id": 2, "name": "query 2"}]
    assert len(found["annotations"]) == 6 * 2 * 2  # each region has two learned queries
    alone = predict(tmp_path / "alone", checkpoint, *query, images, "--threshold", 0)
    first = [entry["score"] for entry in found["annotations"] if entry["category_id"] == 1]
    assert len({round(score, 4) for score in first}) > 4
    assert first == pytest.approx([entry["score"] for entry in alone["annotations"]], abs=1e-5)
    with Image.open(tmp_path / "out" / "pictures" / "0.png") as picture:
        assert picture.width > 2 * 64


@pytest.mark.parametrize("place", ["query_pos", "tgt"])
def test_regions_are_asked_for_as_in_pretraining(place, tmp_path, images, monkeypatch):
    checkpoint = save_pretrained("siamese", "deformable", tmp_path / "pre.pth", hidden_dim=64, content_in=place)
    finder = RegionFinder(restore(checkpoint, {}), device="cpu")
    finder.show(images / "0.png", (24, 16, 48, 32))
    detector, asked = finder.detector, []
    decode = detector.decode
    monkeypatch.setattr(detector, "decode", lambda memory, queries: asked.append(queries) or decode(memory, queries))
    finder(images / "1.png", threshold=0.0)
    content = finder.shown[0].query.expand(1, 2, -1)
    assert torch.equal(asked[0], detector.with_content(detector.queries(1)[:, :2], content, place))


def test_two_runs_in_one_folder(checkpoint, images, tmp_path):
    other = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(other, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on .* is writing there"):
            predict(tmp_path, checkpoint, images)
        process.kill()


def test_untold_flags_reach_the_checkpoint(checkpoint, images, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"model": content["model"], "categories": content["categories"]}, tmp_path / "public.pth")
    predict(tmp_path / "out", tmp_path / "public.pth", images / "0.png", "--nheads", 4, "--eval_size", 64)
    with pytest.raises(CheckpointError, match="--nheads 8 does not fit"):
        predict(tmp_path / "out", checkpoint, images / "0.png", "--nheads", 8)
