"""The journal of predictions: what a damaged one does."""

import contextlib
import json
import os

import pytest

from util.errors import UserError
from util.prediction_files import JOURNAL, ImageRecord, PredictionJournal, write_results

SETTINGS = {"threshold": 0.5}
RECORD = ImageRecord("a.png", 60, 40, [[7, 0.5, 1, 2.5, 30, 40]])


def journal(folder) -> PredictionJournal:
    return PredictionJournal(folder, SETTINGS, category_ids={7})


@pytest.mark.parametrize(
    "change",
    [
        {"found": 3},
        {"found": [[7]]},
        {"found": [["7", 0.5, 1, 2, 3, 4]]},
        {"found": [[8, 0.5, 1, 2, 3, 4]]},
        {"found": [[[], 0.5, 1, 2, 3, 4]]},
        {"found": [[7, 0.5, 1, "2", 3, 4]]},
        {"found": [[7, 0.5, 1, 10**400, 3, 4]]},
        {"found": [[7, 0.5, 1, float("nan"), 3, 4]]},
        {"file": ["a.png"]},
        {"width": 60.5},
        {"another": 1},
    ],
)
def test_a_damaged_line_is_named_and_the_last_one_dropped(tmp_path, capsys, change):
    first = journal(tmp_path)
    first.add([RECORD])
    first.close()
    path = tmp_path / JOURNAL
    head, line = path.read_text().splitlines()
    damaged = json.dumps(json.loads(line) | change)
    path.write_text(f"{head}\n{damaged}\n{line}\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl, line 2: damaged"):
        journal(tmp_path)
    assert path.read_text() == f"{head}\n{damaged}\n{line}\n"
    path.write_text(f"{head}\n{line}\n{damaged}\n")  # the last one
    assert list(journal(tmp_path).done) == ["a.png"]
    assert path.read_text() == f"{head}\n{line}\n"
    assert capsys.readouterr().out.startswith(f"{path}: the last line is unfinished or damaged; it is dropped")


def test_a_whole_journal_goes_on(tmp_path):
    for record in (RECORD, ImageRecord("b.png", 9, 9, [])):
        opened = journal(tmp_path)
        opened.add([record])
        opened.close()
    assert write_results(tmp_path, journal(tmp_path), ["a.png", "b.png"], [{"id": 7, "name": "x"}], {}) == 1


@pytest.mark.parametrize(
    ("content", "is_ours"), [("", True), ('{"set', True), ('{"settings": {"thr', True), ("x", False)]
)
def test_only_a_line_of_its_own_is_cut_off(tmp_path, content, is_ours):
    (tmp_path / JOURNAL).write_text(content)
    with contextlib.nullcontext() if is_ours else pytest.raises(UserError, match="line 1: damaged"):
        journal(tmp_path).close()
    assert (tmp_path / JOURNAL).read_text() == ('{"settings": {"threshold": 0.5}}\n' if is_ours else content)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / JOURNAL)
    with pytest.raises(UserError, match=r"predictions\.jsonl: cannot be read"):
        journal(tmp_path)
