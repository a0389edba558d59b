"""Images without labels."""

import pickle

import pytest

from datasets.image_folder import UnlabelledImages
from datasets.voc import VocSet, unlabelled_voc
from util.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_from_folder(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/1.JPEG", "a.png", "ü/é 3.jpg", "notes.txt")
    images = UnlabelledImages.from_folder(tmp_path)
    assert len(images) == 4
    assert images.relative_paths() == ["a.png", "b/1.JPEG", "b/2.jpg", "ü/é 3.jpg"]
    assert [images.path(i) for i in range(4)] == [tmp_path / name for name in images.relative_paths()]
    assert images.path(3).is_file()


def test_from_voc(tmp_path):
    touch(tmp_path, "VOC2007/JPEGImages/a.jpg", "VOC2007/JPEGImages/b.jpg", "VOC2007/ImageSets/Main/train.txt")
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    images = unlabelled_voc(tmp_path, [VocSet(tmp_path / "VOC2007", "train")])
    assert images.relative_paths() == ["VOC2007/JPEGImages/b.jpg"]
    assert images.path(0).is_file()


def test_packed(tmp_path):
    names = [f"n{number // 1300:08d}/n{number // 1300:08d}_{number:05d}.JPEG" for number in range(100_000)]
    images = UnlabelledImages(tmp_path, names)
    assert images.relative_paths() == names
    assert len(pickle.dumps(images)) < 40 * len(names)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no images in this folder"):
        UnlabelledImages.from_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        UnlabelledImages.from_folder(tmp_path / "nowhere")


def test_photographs(real_data):
    images = UnlabelledImages.from_folder(real_data / "photos" / "train")
    assert len(images) == 1000
    assert all(images.path(i).is_file() for i in range(1000))
