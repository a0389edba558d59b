"""Any way of loading gives the same 64 samples, byte for byte; memory of the workers over an epoch."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.image_folder import UnlabelledImages
from datasets.loader import EpochBatchSampler, make_loader, make_train_loader
from datasets.pretext.two_view import TwoViewDataset, TwoViewTransform, collate_two_view
from datasets.proposals.store import ProposalStore, write_proposals
from tests.gloo import run_processes

SAMPLES, BATCH, SEED = 64, 8, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of unequal size, some large enough to be read at a fraction, and their proposals."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    names, boxes = [f"{index:02}.jpg" for index in range(SAMPLES)], []
    for name in names:
        width, height = rng.integers(60, 260, 2).tolist()
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(folder / "images" / name)
        corners = np.sort(rng.random((rng.integers(6), 2, 2)), axis=1) * (width, height)
        boxes.append(corners.reshape(-1, 4).astype(np.float32))
    scores = [np.arange(len(of_one), 0, -1.0, dtype=np.float32) for of_one in boxes]
    write_proposals(folder / "proposals", paths=names, boxes=boxes, scores=scores, method="edgebox", parameters={})
    return folder


def make_dataset(folder: Path, *, change_later: bool = False) -> TwoViewDataset:
    transform = TwoViewTransform(
        scales=[40, 48, 64], max_size=90, num_regions=4, crop_size=16, view_iou=0.5, mean=(0.5,) * 3, std=(0.2,) * 3,
        change_later=change_later,
    )  # fmt: skip
    images = UnlabelledImages.from_folder(folder / "images")
    return TwoViewDataset(images, ProposalStore(folder / "proposals"), transform, SEED)


def digests(loader: DataLoader, epoch: int = 1, first_batch: int = 0) -> list[str]:
    """One per sample, in order, without the padding, which depends on the batch."""
    loader.batch_sampler.set_position(epoch, first_batch * BATCH)
    found = []
    for batch in loader:
        batch = batch.to("cpu")
        for index, (height, width) in enumerate(batch.size.tolist()):
            parts = (batch.views[index, ..., :height, :width], batch.crops[index], batch.boxes[index])
            found.append(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
    return found


def load(folder: Path, num_workers: int, **options) -> list[str]:
    """The digests of one process."""
    sampler = EpochBatchSampler(SAMPLES, BATCH, seed=SEED)
    loader = make_loader(make_dataset(folder), sampler, collate_two_view, num_workers=num_workers, pin_memory=False)
    return digests(loader, **options)


def load_on_rank(rank: int, folder: Path) -> list[str]:
    """The digests of one of two processes, loaded as main_pretrain.py does."""
    args = argparse.Namespace(batch_size=BATCH // 2, seed=SEED, num_workers=1, pad_to=1, device="cpu")
    return digests(make_train_loader(make_dataset(folder), collate_two_view, args))


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[str]:
    return load(folder, num_workers=0)


def test_samples_are_all_different_and_change_with_the_epoch(folder: Path, alone: list[str]) -> None:
    assert len(set(alone)) == SAMPLES
    assert not set(alone) & set(load(folder, num_workers=0, epoch=2))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_byte(folder: Path, alone: list[str], num_workers: int) -> None:
    assert load(folder, num_workers) == alone


def test_a_resumed_epoch_goes_on_with_the_same_bytes(folder: Path, alone: list[str]) -> None:
    assert load(folder, num_workers=2, first_batch=5) == alone[5 * BATCH :]


def test_two_ranks_share_the_same_samples(folder: Path, alone: list[str]) -> None:
    by_rank = [torch.tensor([alone.index(digest) for digest in found]) for found in run_processes(load_on_rank, folder)]
    shares = torch.arange(SAMPLES).view(-1, 2, BATCH // 2)
    assert torch.equal(by_rank[0], shares[:, 0].flatten())
    assert torch.equal(by_rank[1], shares[:, 1].flatten())


def test_colours_left_to_the_device_are_the_same(folder: Path, alone: list[str]) -> None:
    sampler = EpochBatchSampler(SAMPLES, BATCH, seed=SEED)
    dataset = make_dataset(folder, change_later=True)
    loader = make_loader(dataset, sampler, collate_two_view, num_workers=1, pin_memory=False)
    assert digests(loader) == alone  # on a CPU by the same compiled code
    assert len(next(iter(loader)).photometrics) == BATCH


@pytest.mark.slow
def test_memory_of_the_workers_is_flat(folder: Path) -> None:
    from tools.benchmark_data import memory_of_workers  # imports all of training, which the two ranks do not need

    sampler = EpochBatchSampler(SAMPLES, BATCH, seed=SEED)
    loader = make_loader(make_dataset(folder), sampler, collate_two_view, num_workers=1, pin_memory=False)
    used = []
    for epoch in range(20):
        sampler.set_position(epoch)
        batches = iter(loader)
        for _ in batches:
            pass
        used.append(memory_of_workers(batches))
    assert used[-1] < used[4] + 5
