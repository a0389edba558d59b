"""Files of others."""

import os

import pytest

from util.inputs import Unreadable, read_json, read_text


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, told in (("pipe", "pipe"), (".", "directory"), ("none", "No such file"), ("a\0b", "no file can have")):
        with pytest.raises(Unreadable, match=told):
            read_text(tmp_path / name)
    with pytest.raises(Unreadable, match="device"):
        read_text("/dev/zero")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"[" * 10**5, "nested too deeply"), (b"{", "not JSON"), (b'"\xff"', "not JSON"), (b"", "not JSON")],
)
def test_what_is_not_json(tmp_path, content, told):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Unreadable, match=told):
        read_json(tmp_path / "a.json")


def test_text_is_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\xc3\xa4")
    assert read_text(tmp_path / "a.txt") == "aä"
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(Unreadable, match="not UTF-8"):
        read_text(tmp_path / "a.txt")
