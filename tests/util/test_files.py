"""Files and folders are written whole or not at all."""

import os

import pytest

from util.files import folder_written_whole, write_json, write_text, written_whole


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def _write_half(path):
    with written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json({"x": object()}, path)
    with pytest.raises(KeyboardInterrupt):
        _write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_of_somebody_else_is_not_followed(tmp_path):
    target, path = tmp_path / "precious.txt", tmp_path / "args.json"
    target.write_text("precious")
    for name in (".args.json.tmp", "args.json"):
        (tmp_path / name).symlink_to(target)
    write_text("mine", path)
    assert target.read_text() == "precious"
    assert path.read_text() == "mine"
    assert not path.is_symlink()


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "out"
    with folder_written_whole(folder) as temporary:
        (temporary / "x").write_text("x")
        assert not folder.exists()
    assert (folder / "x").read_text() == "x"
    with pytest.raises(RuntimeError), folder_written_whole(tmp_path / "other") as temporary:
        raise RuntimeError
    assert os.listdir(tmp_path) == ["out"]
