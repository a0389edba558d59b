"""Runs many commands, several at once; an interrupted comparison continues where it stopped."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.comparison.specification import Run
from util.checkpoint import LATEST
from util.errors import UserError
from util.files import write_json, write_text
from util.inputs import Unreadable, read_json

ROOT = Path(__file__).resolve().parent.parent.parent
RECORD = "compare.json"  # in a run's folder: its flags, those of its pretraining, and whether it is finished
OUTPUT = "output.txt"  # in a run's folder: what it printed
SECONDS_BETWEEN_LOOKS = 0.2


def command_of(run: Run, out: Path) -> list[str]:
    """The whole command line; the same command continues a stopped run."""
    start = ["--pretrain", str(out / run.needs / LATEST)] if run.needs else []
    places = ["--output_dir", str(out / run.name), "--resume", "auto"]
    return [sys.executable, os.path.relpath(ROOT / run.script), *run.flags, *start, *places]


def write_commands(runs: list[Run], out: Path) -> None:
    """Write all commands to ``commands.sh``, in an order in which they can be run."""
    lines = [shlex.join(["python", *command_of(run, out)[1:]]) for run in runs]
    write_text("\n".join(lines) + "\n", out / "commands.sh")


def is_finished(run: Run, out: Path) -> bool:
    """Whether an earlier call has finished the run.

    Raises:
        UserError: the run in its folder has other flags.
    """
    record = out / run.name / RECORD
    if not record.is_file():
        return False
    try:
        content = read_json(record)
    except Unreadable as error:
        raise UserError(f"{record}: {error}; remove {record.parent} to run it again") from None
    if not isinstance(content, dict) or type(content.get("finished")) is not bool:
        raise UserError(f"{record}: not a record of this tool; remove {record.parent} to run it again")
    if content != record_of(run, finished=content["finished"]) and (record.parent / LATEST).exists():
        raise UserError(
            f"{out / run.name}: was run with other flags than the specification has now; use another --output_dir"
        )
    return content["finished"]


def record_of(run: Run, *, finished: bool) -> dict[str, Any]:
    """What :data:`RECORD` says about a run, so that it is recognised later."""
    return {"flags": list(run.flags), "before": list(run.before), "finished": finished}


def execute(runs: list[Run], out: Path, jobs: int) -> None:
    """Run everything that is not finished, ``jobs`` runs at once, each with its share of the cores.

    Raises:
        UserError: a run failed; the message has its last line. The others are stopped and can continue later.
    """
    finished = {run.name for run in runs if is_finished(run, out)}
    write_commands(runs, out)
    waiting = [run for run in runs if run.name not in finished]
    if finished:
        print(f"{len(finished)} of {len(runs)} runs are finished already", flush=True)
    running: dict[Run, subprocess.Popen] = {}
    threads = max(1, num_cores() // jobs)
    try:
        while waiting or running:
            ready = [run for run in waiting if run.needs is None or run.needs in finished]
            for run in ready[: jobs - len(running)]:
                waiting.remove(run)
                running[run] = _start(run, out, threads)
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                _finish(run, out, running.pop(run).returncode)
                finished.add(run.name)
                print(f"done {len(finished)}/{len(runs)}: {run.name}", flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(run: Run, out: Path, threads: int) -> subprocess.Popen:
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record_of(run, finished=False), folder / RECORD)
    print(f"start {run.name}", flush=True)
    with open(folder / OUTPUT, "a") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(command_of(run, out), stdout=output, stderr=subprocess.STDOUT, env=environment)


def _finish(run: Run, out: Path, status: int) -> None:
    folder = out / run.name
    if status:
        lines = (folder / OUTPUT).read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise UserError(f"{run.name} failed (exit status {status}): {lines[-1]} [{folder / OUTPUT}]")
    write_json(record_of(run, finished=True), folder / RECORD)
