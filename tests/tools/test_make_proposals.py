"""The proposal tool from its command line: sources, shards, kills at any moment, failures, foreign journals."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_pretrain
from datasets.proposals.store import ProposalStore, write_proposals
from tests.conftest import ROOT
from tests.processes import session, wait_until
from tools import make_proposals
from tools.render_scenes import render_data_set
from util.errors import DataError, UserError

pytest.importorskip("cv2.ximgproc")
TOOL = ROOT / "tools" / "make_proposals.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rendered scenes, in folders."""
    folder = tmp_path_factory.mktemp("proposals") / "data"
    render_data_set(folder, 1, 1, 12, size=96)
    return folder / "unlabelled"


def make(data: Path, out: Path, *argv: str) -> None:
    make_proposals.main(["--data_path", str(data), "--output_dir", str(out), "--num_workers", "1", *argv])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def begin(data: Path, out: Path, *argv: str) -> subprocess.Popen:
    command = [sys.executable, str(TOOL), "--data_path", data, "--output_dir", out, "--num_workers", "2", *argv]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("method", ["edgebox", "selective_search", "random"])
def test_every_method_serves_pretraining(images: Path, tmp_path: Path, method: str) -> None:
    make(images, tmp_path / "out", "--method", method, "--max_boxes", "7")
    store = ProposalStore(tmp_path / "out")
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*"))
    store.check(names, method)
    assert len(names) == 12
    assert sum(len(store.boxes(i)) for i in range(12)) > 40
    for index, name in enumerate(names):
        boxes, scores = store.boxes(index), store.scores(index)
        with Image.open(images / name) as image:
            assert (boxes >= 0).all()
            assert (boxes <= np.tile(image.size, 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(boxes) <= 7
        assert (np.diff(scores) <= 0).all()
    if method != "random":  # random boxes are drawn by main_pretrain.py itself
        flags = ["--proposals", method, "--proposal_dir", str(tmp_path / "out"), "--data_path", str(images)]
        dataset = main_pretrain.build_dataset(main_pretrain.parse([*flags, "--batch_size", "2"])[0])
        assert dataset.proposals.method == method
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["edgebox", "selective_search", "random"])
def test_shards_merge_to_the_undivided_result(images: Path, tmp_path: Path, method: str) -> None:
    make(images, tmp_path / "whole", "--method", method)
    for number in (3, 1):
        make(images, tmp_path / "out", "--method", method, "--shard", f"{number}/3")
    with pytest.raises(DataError, match=r"2-of-3\.journal.*make this shard first"):
        make(images, tmp_path / "out", "--method", method, "--merge", "3")
    make(images, tmp_path / "out", "--method", method, "--shard", "2/3")
    assert not (tmp_path / "out").exists()
    make(images, tmp_path / "out", "--method", method, "--merge", "3")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def killed_and_resumed(data: Path, out: Path, kills: int, longest: float, *argv: str) -> int:
    """Kill the tool after random times, then let it finish; returns how many kills met it at work."""
    rng = random.Random(0)
    met = 0
    for _ in range(kills):
        process = multiprocessing.Process(target=make, args=(data, out, "--num_workers", "2", *argv))
        process.start()
        process.join(rng.uniform(0, longest))
        met += process.is_alive()
        process.kill()
        process.join()
        assert not out.exists() or ProposalStore(out)
    make(data, out, *argv)
    return met


def test_kills_leave_the_result_unchanged(images: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    make(images, tmp_path / "calm", "--num_workers", "2")
    assert killed_and_resumed(images, tmp_path / "out", 6, (time.monotonic() - begun) / 2) > 0
    assert content(tmp_path / "out") == content(tmp_path / "calm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "out"]


@pytest.mark.slow
def test_twenty_kills_leave_the_result_unchanged(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "raccoon" / "train"
    make(data, tmp_path / "calm")
    assert killed_and_resumed(data, tmp_path / "out", 20, 0.4) > 10
    assert content(tmp_path / "out") == content(tmp_path / "calm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "out"]


def test_journal_cut_at_any_byte_resumes_to_the_same(images: Path, tmp_path: Path) -> None:
    flags = ["--method", "random", "--max_boxes", "3"]
    make(images, tmp_path / "out", *flags, "--shard", "1/1")
    whole = (tmp_path / "out.parts").joinpath("1-of-1.journal").read_bytes()
    for number, length in enumerate(random.Random(1).sample(range(len(whole)), 6)):
        parts = tmp_path / f"{number}.parts"
        parts.mkdir()
        torn = whole[:length] + bytes(20) * (number % 2)  # a power failure may leave zeros
        (parts / "1-of-1.journal").write_bytes(torn)
        make(images, tmp_path / str(number), *flags, "--shard", "1/1")
        assert (parts / "1-of-1.journal").read_bytes() == whole


SLOWLY = ("--method", "selective_search", "--size", "0")


def long_work(images: Path, tmp_path: Path) -> Path:
    """A folder of pictures that takes half a minute ``SLOWLY``."""
    many = tmp_path / "many"
    many.mkdir()
    with Image.open(next(images.rglob("*.*"))) as image:
        large = image.resize((300, 300))
    for number in range(80):
        large.save(many / f"{number}.jpg")
    return many


def test_sigterm_ends_cleanly_and_a_killed_parent_takes_its_workers_along(images: Path, tmp_path: Path) -> None:
    many = long_work(images, tmp_path)
    for how, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        process = begin(many, tmp_path / "out", *SLOWLY)
        wait_until(lambda: (tmp_path / "out.parts").is_dir() and len(session(process.pid)) >= 3)  # noqa: B023
        process.send_signal(how)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == expected
        assert "Traceback" not in stderr
        wait_until(lambda: not session(process.pid))  # noqa: B023
    assert not (tmp_path / "out").exists()


def test_a_killed_worker_is_told(images: Path, tmp_path: Path) -> None:
    process = begin(long_work(images, tmp_path), tmp_path / "out", *SLOWLY)
    wait_until(lambda: len(session(process.pid)) >= 3)
    worker = next(pid for pid in session(process.pid) if pid != process.pid)
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by signal: Killed" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_failed_and_bare_images_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (64, 48), "red").save(data / "b_plain.png")
    (data / "a_empty.jpg").touch()
    (data / "c_text.jpg").write_text("no image")
    make(data, tmp_path / "out")
    store = ProposalStore(tmp_path / "out")
    assert [len(store.boxes(i)) for i in range(3)] == [0, 0, 0]
    failed = json.loads((tmp_path / "out" / "failed.json").read_text())
    assert [one["path"] for one in failed] == ["a_empty.jpg", "c_text.jpg"]
    assert "empty file" in failed[0]["reason"]
    assert "not an image" in failed[1]["reason"]
    assert "1 without boxes, 2 failed" in capsys.readouterr().out

    argv = ["--data_path", str(data), "--proposals", "edgebox", "--proposal_dir", str(tmp_path / "out")]
    args, _ = main_pretrain.parse(argv)
    Image.new("RGB", (64, 48)).save(data / "a_empty.jpg")  # now an image; the other file still is not one
    with pytest.raises(DataError, match=r"c_text\.jpg: not an image"):
        main_pretrain.build_dataset(args)
    Image.new("RGB", (64, 48)).save(data / "c_text.jpg")
    assert len(main_pretrain.build_dataset(args)) == 3


def test_regions_of_ones_own_have_any_name_but_random(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    regions = {"paths": ["a.png"], "boxes": [np.array([[1.0, 2, 50, 40]])], "scores": [np.ones(1)], "parameters": {}}
    for name in ("mine", "random"):
        write_proposals(tmp_path / name, **regions, method=name)
    argv = ["--data_path", str(tmp_path), "--proposals", "mine", "--proposal_dir"]
    assert len(main_pretrain.build_dataset(main_pretrain.parse([*argv, str(tmp_path / "mine")])[0])) == 1
    with pytest.raises(DataError, match="leave out --proposal_dir"):
        main_pretrain.build_dataset(main_pretrain.parse([*argv, str(tmp_path / "random")])[0])


def test_boxes_are_in_pixels_of_the_upright_image(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pixels = np.full((120, 240, 3), 40, np.uint8)  # as stored: lying
    pixels[20:70, 150:220] = (230, 200, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    Image.fromarray(pixels).save(data / "turned.png", exif=exif)
    make(data, tmp_path / "out", "--max_boxes", "5")
    best = ProposalStore(tmp_path / "out").boxes(0)[0]
    np.testing.assert_allclose(best, [50, 150, 100, 220], atol=8)


def test_sources(images: Path, tmp_path: Path, real_data: Path) -> None:
    flags = ["--method", "random", "--max_boxes", "2"]
    coco, voc = real_data / "raccoon", real_data / "bccd"
    make(coco, tmp_path / "coco", *flags, "--dataset_file", "coco", "--split", "val")
    assert len(ProposalStore(tmp_path / "coco")) == 40
    make(voc, tmp_path / "voc", *flags, "--dataset_file", "voc", "--split", "val")
    first = (voc / "ImageSets" / "Main" / "test.txt").read_text().split()[0]
    assert ProposalStore(tmp_path / "voc").path(0) == f"JPEGImages/{first}.jpg"
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*"))[3:5]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    make(images, tmp_path / "listed", *flags, "--list", str(tmp_path / "list.txt"))
    ProposalStore(tmp_path / "listed").check(names, "random")


def test_other_flags_or_images_do_not_go_on(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    flags = ["--method", "random", "--shard", "1/1"]
    make(data, tmp_path / "out", *flags)
    with pytest.raises(DataError, match=r"another parameters.*'seed': 0.*'seed': 1.*remove"):
        make(data, tmp_path / "out", *flags, "--seed", "1")
    with pytest.raises(DataError, match="another method"):
        make(data, tmp_path / "out", "--shard", "1/1")
    Image.new("RGB", (9, 9)).save(data / "new.jpg")
    with pytest.raises(DataError, match="another num images"):
        make(data, tmp_path / "out", *flags)
    (data / "new.jpg").unlink()
    make(data, tmp_path / "out", *flags[:2])
    make(data, tmp_path / "out", *flags[:2])  # complete already
    with pytest.raises(DataError, match="made with seed 0, not 1"):
        make(data, tmp_path / "out", *flags[:2], "--seed", "1")
    with pytest.raises(DataError, match="made by random"):
        make(data, tmp_path / "out")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shard", "0/4"], "write I/N"),
        (["--shard", "5/4"], "write I/N"),
        (["--shard", "1/2", "--merge", "2"], "choose one"),
        (["--max_boxes", "0"], "--max_boxes 0"),
        (["--seed", "1"], "goes with --method random"),
        (["--edge_model", "nowhere.yml"], "nowhere.yml: cannot be read"),
        (["--method", "random", "--edge_model", "x"], "goes with --method edgebox"),
        (["--list", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--list", str(TOOL), "--data_path", "nowhere"], "nowhere: no such folder"),
        (["--edge_model", str(TOOL)], "not a structured forest"),
        (["--voc_train", "2007:train"], "--dataset_file voc"),
        (["--split", "val"], "--split val goes with"),
        (["--output_dir", f"{TOOL}/below"], "below.parts: cannot be written"),
    ],
)
def test_flags_that_cannot_work(images: Path, tmp_path: Path, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(images, tmp_path / "out", *argv)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_on_one_shard(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "out", "--method", "random", "--shard", "1/1")
    journal = tmp_path / "out.parts" / "1-of-1.journal"
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, str(journal)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with pytest.raises(DataError, match="another process is working on this shard"):
            make(images, tmp_path / "out", "--method", "random", "--shard", "1/1")
    finally:
        holder.kill()
        holder.communicate()
    assert os.path.getsize(journal) > 0
