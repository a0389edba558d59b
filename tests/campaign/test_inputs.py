"""Thousands of changed inputs, each in a process of its own: no traceback, no hang, no code, no half file."""

from __future__ import annotations

import collections
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.campaign.mutations import change_bytes, change_checkpoint, change_json, change_text
from tests.campaign.readers import READERS, copy_of, make_inputs
from tests.campaign.runner import run

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
TEXTS = (".xml", ".txt", ".yaml")
SHARE = float(os.environ.get("CAMPAIGN_SHARE", "1"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return make_inputs(tmp_path_factory.mktemp("campaign") / "whole")


def change_a_file(folder: Path, rng: random.Random, proof: Path) -> str:
    """Change one file of an input and return it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    suffix = rng.choice(sorted({path.suffix for path in files}))  # else almost only images would be changed
    path = rng.choice([path for path in files if path.suffix == suffix])
    if path.suffix == ".pth" and rng.random() < 0.7:
        change_checkpoint(path, rng, proof)
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(change_json(path.read_bytes(), rng))
    elif path.suffix == ".jsonl" and rng.random() < 0.7:
        lines = path.read_bytes().splitlines(keepends=True)
        number = rng.randrange(len(lines))
        lines[number] = change_json(lines[number], rng) + b"\n"
        path.write_bytes(b"".join(lines))
    elif path.suffix in TEXTS and rng.random() < 0.6:
        path.write_bytes(change_text(path.read_bytes(), rng))
    elif rng.random() < 0.03:
        path.unlink()
        rng.choice([path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: None])()
    else:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    return path.relative_to(folder).as_posix()


def half_files(folder: Path) -> list[str]:
    """Files that a failed write has left behind."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("kind", READERS)
def test_whole_inputs_are_read(whole, tmp_path, kind):
    outcome = run(lambda: READERS[kind][0](copy_of(whole, kind, _place(whole, tmp_path))))
    assert outcome.status == 0, outcome.told
    assert outcome.fault is None


def _place(whole: Path, tmp_path: Path) -> Path:
    (tmp_path / "whole").symlink_to(whole)
    return tmp_path


@pytest.mark.parametrize("kind", READERS)
def test_changed_inputs_are_one_line_or_are_read(whole, tmp_path, kind):
    reader, count = READERS[kind]
    faults, statuses, slowest, peak = [], collections.Counter(), 0.0, 0
    _place(whole, tmp_path)
    begun = time.monotonic()
    for number in range(max(1, round(count * SHARE))):
        rng = random.Random(f"{SEED} {kind} {number}")
        folder = copy_of(whole, kind, tmp_path)
        proof = tmp_path / "proof"
        changed = change_a_file(folder, rng, proof)
        outcome = run(lambda: reader(folder))  # noqa: B023
        fault = outcome.fault or ("code ran" if proof.exists() else None)
        fault = fault or ("half files: " + ", ".join(half_files(folder)) if half_files(folder) else None)
        if fault:
            faults.append(f"{kind} {number} ({changed}): {fault}")
        proof.unlink(missing_ok=True)
        statuses[outcome.status] += 1
        slowest, peak = max(slowest, outcome.seconds), max(peak, outcome.peak)
        shutil.rmtree(folder)
    print(
        f"\n{kind}: {sum(statuses.values())} inputs, {statuses[1]} refused, {statuses[0]} read, {len(faults)} faults, "
        f"slowest {slowest:.1f} s, most memory {peak / 2**20:.0f} MiB, {time.monotonic() - begun:.0f} s in all"
    )
    assert not faults, "\n".join(faults)
