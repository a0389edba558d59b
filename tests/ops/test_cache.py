"""Which compiled libraries are loaded, and by whom they were waited for."""

import fcntl
import os
import subprocess
import sys

import pytest

from datasets.pixels import compiled
from ops.cache import cache_folder, check_private, locked
from tests.conftest import ROOT


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "cache" / "package" / "a.so"
    path.parent.mkdir(parents=True)
    path.touch()
    for place in (path, path.parent, path.parent.parent):
        place.chmod(0o755)
    return path


def test_only_what_no_other_can_write_is_loaded(library):
    cache = library.parent.parent
    check_private(library, cache)
    for place in (library, library.parent, cache):
        place.chmod(0o777)
        with pytest.raises(PermissionError, match=f"{place} can be written by other users"):
            check_private(library, cache)
        place.chmod(0o755)


def test_a_group_of_ones_own_may_write(library):
    library.chmod(0o775)
    check_private(library, library.parent.parent)
    if os.geteuid() == 0:
        os.chown(library, -1, 12345)
        with pytest.raises(PermissionError, match="other users"):
            check_private(library, library.parent.parent)
        os.chown(library, 12345, -1)
        with pytest.raises(PermissionError, match="belongs to another user"):
            check_private(library, library.parent.parent)


def test_what_lies_around_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    compiled.load.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"can be written by other users.*make sure that only you can write"):
            assert compiled.load() is None
    finally:
        compiled.load.cache_clear()


@pytest.fixture
def quick_compiler(tmp_path, monkeypatch):
    """Copies what was compiled before, in place of compiling it once more."""
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\nfor output; do :; done\ncp "{compiled._compiled()}" "$output"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.parametrize("content", [b"", b"\x7fELF and no more"])
def test_a_library_that_cannot_be_loaded_is_made_again(tmp_path, monkeypatch, quick_compiler, content):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    path = compiled._compiled()
    path.write_bytes(content)
    compiled.load.cache_clear()
    try:
        with pytest.warns(UserWarning, match="cannot be loaded .* compiled again"):
            assert compiled.load() is not None
    finally:
        compiled.load.cache_clear()


def test_a_quote_without_its_partner(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "'c++")
    compiled.load.cache_clear()
    try:
        with pytest.warns(UserWarning, match="CXX is not a command line"):
            assert compiled.load() is None
    finally:
        compiled.load.cache_clear()


def test_nobody_without_a_home(monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(OSError, match="set HOME or TORCH_EXTENSIONS_DIR"):
        cache_folder()


def test_long_waiting_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ops.cache.PATIENCE", 0.2)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
    command = [sys.executable, "-c", code + "time.sleep(1)", str(tmp_path / "a.lock")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        path = tmp_path / "a.lock"
        with locked(path, "compiling"), open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert "waiting for another process that is compiling" in capsys.readouterr().err
