"""The listing of a large folder is kept, taken again while it is true, and shared."""

import os
import time

import numpy as np
import pytest

from datasets import listing
from datasets.image_folder import UnlabelledImages
from tests.gloo import run_processes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images in folders that have not changed for a minute; any number of images is worth keeping."""
    monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
    root = tmp_path / "images"
    for name in ("b/2.jpg", "b/ü.JPEG", "c/d/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    settle(root)
    (tmp_path / "out").mkdir()
    return root


def settle(root):
    """Let a minute pass since the folders changed."""
    then = time.time_ns() - 60 * 10**9
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            os.utime(path, ns=(then, path.stat().st_mtime_ns - 60 * 10**9))


@pytest.fixture
def walks(monkeypatch):
    """How often a folder was walked through."""
    counted = []

    def walk(root):
        counted.append(root)
        return real(root)

    real = listing.list_with_times
    monkeypatch.setattr(listing, "list_with_times", walk)
    return counted


def listed(root):
    return UnlabelledImages.from_folder(root, root.parent / "out").relative_paths()


def test_the_second_start_takes_the_listing_of_the_first(folder, walks):
    assert listed(folder) == listed(folder) == UnlabelledImages.from_folder(folder).relative_paths()
    assert len(walks) == 1
    assert sorted(path.suffix for path in (folder.parent / "out").iterdir()) == [".json", ".npy"]


def add(root):
    (root / "c" / "d" / "0.png").touch()


def remove(root):
    (root / "b" / "2.jpg").unlink()


def rename(root):
    (root / "c" / "d").rename(root / "c" / "e")


def add_folder(root):
    (root / "c" / "f").mkdir()


@pytest.mark.parametrize("change", [add, remove, rename, add_folder])
def test_a_folder_that_changed_is_listed_again(folder, walks, change):
    listed(folder)
    change(folder)
    assert listed(folder) == UnlabelledImages.from_folder(folder).relative_paths()
    assert len(walks) == 2
    settle(folder)
    listed(folder)
    listed(folder)
    assert len(walks) == 3
    assert len(list((folder.parent / "out").iterdir())) == 2  # what is not true any more is gone


def test_a_folder_that_had_just_changed_is_listed_again(folder, walks):
    """Within a step of the file system's clock it may have changed once more unseen."""
    add(folder)
    listed(folder)
    listed(folder)
    assert len(walks) == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def spoil(path):
    path.write_bytes(path.read_bytes()[:-2] + b"xx")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, spoil, empty, os.unlink])
@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_a_damaged_listing_is_made_again(folder, walks, damage, suffix):
    expected = listed(folder)
    damage(next((folder.parent / "out").glob(f"*{suffix}")))
    assert listed(folder) == listed(folder) == expected
    assert len(walks) == 2


@pytest.mark.parametrize("content", ["[]", "{}", '{"listed_at": 1, "paths": "../x", "folders": {"": 1}}'])
def test_a_foreign_index_is_replaced(folder, walks, content):
    expected = listed(folder)
    next((folder.parent / "out").glob("*.json")).write_text(content)
    assert listed(folder) == listed(folder) == expected
    assert len(walks) == 2


def test_two_roots_have_a_listing_each(folder, walks):
    first, second = listed(folder), UnlabelledImages.from_folder(folder / "b", folder.parent / "out").relative_paths()
    assert (first, second) == (["b/2.jpg", "b/ü.JPEG", "c/d/1.png"], ["2.jpg", "ü.JPEG"])
    assert listed(folder) == first
    assert len(walks) == 2


def test_without_an_output_folder_nothing_is_kept(folder, walks):
    (folder.parent / "out").rmdir()
    assert listed(folder) == listed(folder)
    assert len(walks) == 2


def test_few_images_leave_no_file(folder, monkeypatch):
    monkeypatch.setattr(listing, "WORTH_KEEPING", 4)
    listed(folder)
    assert not list((folder.parent / "out").iterdir())


def paths_of_process(rank, root, out):
    os.environ["LOCAL_RANK"] = str(rank)
    listing.WORTH_KEEPING = 1
    walks = []
    real = listing.list_with_times
    listing.list_with_times = lambda folder: walks.append(folder) or real(folder)
    images = UnlabelledImages.from_folder(root, out)
    return images.relative_paths(), len(walks), isinstance(images.paths, np.memmap)


@pytest.mark.slow
def test_one_process_of_a_machine_lists_for_all(folder):
    expected = UnlabelledImages.from_folder(folder).relative_paths()
    first, second = run_processes(paths_of_process, folder, folder.parent / "out")
    assert first == (expected, 1, True)
    assert second == (expected, 0, True)
