"""Signals in a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from datasets.loader import ProtectedLoader
from tests.conftest import ROOT
from tests.gloo import run_processes
from tests.processes import session, wait_until, without_nohup
from util.signals import HeldSignals
from util.stopping import Stopping


def start(code: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=without_nohup
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_script_ends_in_one_line(number):
    process = start(
        "import time; from util.script import run_script\n"
        "run_script(lambda: (print('begun', flush=True), time.sleep(60)), 'told so')"
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.communicate()[1] == "told so\n"
    assert process.returncode == 128 + number


def test_nohup_keeps_a_script():
    code = (
        "import os, signal; from util.script import run_script\n"
        "run_script(lambda: (os.kill(os.getpid(), signal.SIGHUP), print('went on')))"
    )
    command = ["nohup", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "went on\n"


def test_outside_of_a_script_unread_output_is_an_error():
    process = start(
        "import os, sys; from util.logger import say\n"
        "ours, its = os.pipe(); os.close(ours); os.dup2(its, 1)\n"
        "try: say('to nobody')\n"
        "except BrokenPipeError: print('raised', file=sys.stderr, flush=True)\n"
        "os._exit(0)\n"
    )
    assert process.communicate()[1] == "raised\n"
    assert process.returncode == 0


def test_a_signal_while_importing_is_one_line():
    process = start(
        "from util.signals import end_in_one_line; end_in_one_line('told so'); print('begun', flush=True)\n"
        "import time; time.sleep(60)"
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "told so\n"
    assert process.returncode == 130


def test_the_first_signal_is_noted_and_the_second_ends():
    process = start(
        "import time; from util.signals import HeldSignals\n"
        "with HeldSignals('finishing') as held:\n"
        "    print('begun', flush=True)\n"
        "    while not held.received: time.sleep(0.01)\n"
        "    print(held.received, flush=True)\n"
        "    time.sleep(60)\n"
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "15\n"
    process.send_signal(signal.SIGTERM)  # a launcher's echo
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == -signal.SIGINT
    assert told == "SIGTERM: finishing, then stopping; another signal ends the run at once\n"


def _stops_at(rank: int, signalled: int) -> int:
    """The step after which this process stops, if one of them gets a signal in step 3."""
    with HeldSignals("finishing") as held:
        stopping = Stopping(held)
        for step in range(1, 10):
            if step == 3 and rank == signalled:
                os.kill(os.getpid(), signal.SIGUSR1)
            number = stopping.after_step()
            if number:
                assert number == signal.SIGUSR1
                stopping.now()
                return step
    return 0


@pytest.mark.parametrize("signalled", [0, 1])
def test_all_processes_stop_after_the_same_step(signalled):
    assert run_processes(_stops_at, signalled) == [4, 4]


def test_loading_processes_do_not_outlive_their_parent():
    process = start(
        "import time; from datasets.loader import ProtectedLoader\n"
        "it = iter(ProtectedLoader(range(99), num_workers=2)); next(it)\n"
        "print('begun', flush=True); time.sleep(60)\n"
    )
    assert process.stdout.readline() == "begun\n"
    assert len(session(process.pid)) >= 3
    process.kill()
    process.communicate()
    wait_until(lambda: not session(process.pid), seconds=3)


def test_loading_processes_end_after_an_unforeseen_error():
    """Its traceback keeps their iterator alive to the end."""
    process = start(
        "from datasets.loader import ProtectedLoader\n"
        "def work():\n"
        "    batches = iter(ProtectedLoader(range(99), num_workers=2, persistent_workers=True)); next(batches)\n"
        "    raise AssertionError('unforeseen')\n"
        "work()\n"
    )
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert told.endswith("AssertionError: unforeseen\n")
    wait_until(lambda: not session(process.pid), seconds=3)


def test_loading_processes_are_protected_from_the_beginning(monkeypatch):
    """A signal comes when torch has set its handlers, and before the process has set its own."""

    def signalled() -> None:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)

    monkeypatch.setattr("torch.utils.data._utils.signal_handling._set_worker_signal_handlers", signalled)
    loader = ProtectedLoader(torch.arange(40), num_workers=1)
    assert sum(1 for _ in loader) == 40
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_parent_that_ends_while_it_takes_a_tensor_is_no_error():
    process = start(
        "import os, socket, sys, threading; from multiprocessing import resource_sharer\n"
        "from util.signals import protect_worker\n"
        "protect_worker()\n"
        "address, _ = resource_sharer._resource_sharer.register(print, print)\n"
        "for number in range(2):  # the second is accepted when the first has been dealt with\n"
        "    parent = socket.socket(socket.AF_UNIX); parent.connect(address)\n"
        "    parent.recv(1) if number else parent.close()\n"
        "sys.excepthook(ValueError, ValueError('an error'), None); sys.stderr.flush(); os._exit(0)\n"
    )
    assert process.communicate()[1] == "ValueError: an error\n"


def test_loading_processes_go_on_when_the_whole_group_is_told_to_end():
    loader = ProtectedLoader(torch.arange(40), num_workers=1, prefetch_factor=1)
    batches = iter(loader)
    next(batches)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        os.kill(batches._workers[0].pid, number)
    assert sum(1 for _ in batches) == 39
