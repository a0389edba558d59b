"""What a script says of errors from outside: one line each."""

import errno
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from util.errors import UserError
from util.files import write_text
from util.logger import say
from util.script import run_script
from util.signals import tell


def told(capsys, error: BaseException) -> str:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/log.txt"), "cannot write /a/log.txt: No space left"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/log.txt"), "cannot use /a/log.txt: No such"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "File name too long"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), "cannot use /a: Is a directory"),
        (OSError(errno.EIO, "Input/output error"), "the system does not name the file"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "lower --batch_size"),
        (MemoryError(), "memory is full: lower --batch_size"),
        (UserError("what\nis wrong"), "error: what is wrong"),
    ],
)
def test_errors_from_outside_are_one_line(capsys, error, words):
    assert words in told(capsys, error)


def test_an_error_of_the_code_keeps_its_traceback():
    for error in (ValueError("shapes differ"), RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(error)):
            run_script(lambda: (_ for _ in ()).throw(error))  # noqa: B023


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data_path", "a\0b"], ""),
        (["--data_path", "\ud800"], ""),
        (
            ["--output_dir", "x" * 5000, "--data_path", ".", *"--dataset_file coco --recipe paper".split()],
            "name too long",
        ),
        (["--resume", "a\0b", "--data_path", "."], ""),
        (["--backbone_weights", "a\0b", "--data_path", "."], ""),
    ],
)
@pytest.mark.parametrize("script", ["main_pretrain", "main_finetune"])
def test_flags_that_no_file_can_be_called(capsys, tmp_path, script, argv, words):
    import importlib

    out = [] if "--output_dir" in argv else ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: importlib.import_module(script).main([*argv, *out, "--device", "cpu", "--num_workers", "0"]))
    assert stop.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert words in errors[0]


def test_a_process_without_output_runs(monkeypatch):
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, None)

    def task() -> None:
        say("seen by nobody")
        tell("nor this")
        raise UserError("nor this")

    with pytest.raises(SystemExit) as stop:
        run_script(task)
    assert stop.value.code == 1


def test_letters_that_the_terminal_has_not():
    code = "from util.script import run_script; run_script(lambda: print('Zebra \\u6591\\u99ac \\udcff'))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"Zebra \\u6591\\u99ac \\udcff\n"


def test_a_full_disk_is_told_with_the_file(tmp_path):
    code = (
        "import resource, signal, sys; from util.files import write_text; from util.script import run_script\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "run_script(lambda: write_text('x' * 10**5, sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == f"error: cannot use {tmp_path}/a.json: File too large\n"
    assert not list(tmp_path.iterdir())


def test_a_name_that_utf8_lacks_is_written(tmp_path):
    write_text("a\udcff", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "a\\udcff"
