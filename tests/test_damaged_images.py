"""Images that cannot be used are found before training: all are listed, and skipped or read in part."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_finetune
import main_pretrain
from datasets.proposals.store import write_proposals
from tests.tiny import COMMON, DETECTOR, PRETRAIN, write_data_set, write_voc
from util.checkpoint import load_file
from util.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data(whole, tmp_path) -> Path:
    """Ten images each in train and val: 2 is empty, 4 is missing and 6 is a text."""
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    for split in ("train", "val"):
        (root / split / "2.png").write_bytes(b"")
        (root / split / "4.png").unlink()
        (root / split / "6.png").write_text("text")
    return root


def pretrain(root, out, *argv) -> dict:
    argv = [*PRETRAIN, *DETECTOR, "--max_steps", "1", *map(str, argv)]
    main_pretrain.main(["--data_path", str(root / "train"), "--output_dir", str(out), *argv])
    return load_file(out / "checkpoint.pth")


def finetune(root, out, *argv) -> dict:
    argv = [*COMMON, *DETECTOR, "--max_steps", "1", *map(str, argv)]
    main_finetune.main(["--data_path", str(root), "--output_dir", str(out), *argv])
    return load_file(out / "checkpoint.pth")


def test_all_are_told_before_training(data, tmp_path, capsys):
    with pytest.raises(DataError, match=r"2 of 9 images of train cannot be used.*2\.png: empty file.*--damaged skip"):
        pretrain(data, tmp_path / "out")
    told = capsys.readouterr().out
    assert "2.png: empty file" in told
    assert "6.png: not an image of any known format" in told
    assert not list((tmp_path / "out").glob("checkpoint*"))


@pytest.mark.parametrize("num_workers", ["0", "2"])
@pytest.mark.parametrize("form", ["coco", "voc"])
def test_they_are_left_out_and_listed(data, whole, tmp_path, capsys, monkeypatch, form, num_workers):
    monkeypatch.setattr("datasets.check_images.ALONE", 0)
    root = data
    if form == "voc":
        root = write_voc(tmp_path / "voc", whole)
        (root / "JPEGImages" / "2.png").write_bytes(b"")
        (root / "JPEGImages" / "4.png").unlink()
        (root / "JPEGImages" / "6.png").write_text("text")
    flags = ["--damaged", "skip", "--dataset_file", form, "--num_workers", num_workers]
    finetune(root, tmp_path / "out", *flags)
    assert "3 of 10 images of train are skipped" in capsys.readouterr().out
    for name in ("train", "val"):
        listed = json.loads((tmp_path / "out" / f"{name}_damaged.json").read_text())
        assert [Path(one["path"]).name for one in listed] == ["2.png", "4.jpg" if form == "voc" else "4.png", "6.png"]
        assert "no such image file" in listed[1]["reason"]


def test_proposals_stay_with_their_images(data, tmp_path):
    names = sorted(path.name for path in (data / "train").iterdir())
    boxes = [np.array([[n, n, 40 + n, 40 + n]], dtype=np.float32) for n in range(len(names))]
    scores = [np.ones(1, dtype=np.float32)] * len(names)
    write_proposals(tmp_path / "p", paths=names, boxes=boxes, scores=scores, method="mine", parameters={})
    flags = ["--proposals", "mine", "--proposal_dir", str(tmp_path / "p"), "--damaged", "skip"]
    pretrain(data, tmp_path / "out", *flags)
    args, _ = main_pretrain.parse(["--data_path", f"{data}/train", *PRETRAIN, *flags])
    dataset = main_pretrain.build_dataset(args).select(np.array([0, 3]))
    assert dataset.images.path(1).name == names[3]
    np.testing.assert_array_equal(dataset.proposals_of(1), boxes[3])


def truncated_jpeg(path: Path, source: Path) -> None:
    """The picture of ``source`` without the last eighth of its bytes."""
    stream = io.BytesIO()
    Image.open(source).save(stream, "JPEG", quality=90)
    path.write_bytes(stream.getvalue()[: -len(stream.getvalue()) // 8])


def test_jpeg_files_without_their_end(whole, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    truncated_jpeg(root / "train" / "3.jpg", root / "train" / "3.png")
    with pytest.raises(DataError, match=r"3\.jpg: .*truncated.*--allow_truncated"):
        pretrain(root, tmp_path / "a")
    pretrain(root, tmp_path / "b", "--allow_truncated")
    assert "the end of 1 JPEG files is missing" in capsys.readouterr().out


def test_large_sets_are_told_of_the_flag(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.check_images.FEW", 5)
    with pytest.raises(DataError):
        pretrain(data, tmp_path / "a", "--max_steps", "9")
    assert "9 images are not checked before training; --check_images" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"2 of 9 images of train"):
        pretrain(data, tmp_path / "b", "--check_images")


def test_none_is_left(data, tmp_path):
    for path in (data / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image of train can be used"):
        pretrain(data, tmp_path / "out", "--damaged", "skip")


def test_pipes_are_not_waited_for(whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    os.mkfifo(root / "train" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: a pipe, socket or device"):
        pretrain(root, tmp_path / "out")


def test_more_objects_than_queries_are_told(whole, tmp_path, capsys):
    finetune(whole, tmp_path / "out", "--num_queries", "1")
    told = capsys.readouterr().out
    assert "10 of 10 images have more objects than --num_queries 1 (up to 2, in " in told
