"""One run a folder."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from util.errors import UserError
from util.run_lock import NAME, locked

HOLD = (
    "import sys; from pathlib import Path; from util.run_lock import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True); input()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_run_is_told_of_the_first(holder, tmp_path):
    told = rf"process {holder.pid} on {os.uname().nodename} is writing there"
    with pytest.raises(UserError, match=told), locked(tmp_path):
        pass


def test_a_dead_holder_is_no_obstacle(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / NAME).read_text()


def test_a_run_after_another_takes_the_lock(tmp_path):
    with locked(tmp_path):
        pass
    after = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, input="\n", capture_output=True, text=True, check=True
    )
    assert after.stdout == "held\n"


def test_a_lock_file_that_says_nothing(holder, tmp_path):
    (tmp_path / NAME).write_text("[" * 10**5)
    with pytest.raises(UserError, match="another run is writing there"), locked(tmp_path):
        pass


def test_a_pipe_in_its_place_is_named(tmp_path):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(OSError, match=r"'.*\.lock'"), locked(tmp_path):
        pass


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("content")
    (tmp_path / "out" / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "content"
