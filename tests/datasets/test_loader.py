"""Which samples come in which batch, on which process, in which epoch."""

import contextlib
import gc
import os
import random
import resource
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datasets.loader import EpochBatchSampler, EvalSampler, ProtectedLoader, collate_detection, make_loader
from tests.datasets.loading import error_of_first_batch
from util.errors import DataError, UserError


class Noise(Dataset):
    """Images of random size and content, as the real data sets draw them: from (seed, epoch, index)."""

    def __len__(self):
        return 11

    def __getitem__(self, key):
        rng = np.random.default_rng((3, *key))
        image = torch.from_numpy(rng.random((3, *rng.integers(4, 9, 2)), dtype=np.float32))
        return image, {"key": torch.tensor(key), "threads": torch.tensor(torch.get_num_threads())}


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, key):
        raise DataError(f"/some/where/{key[1]}.jpg: empty file (0 bytes), not an image; replace or remove it")


def batches(**options):
    sampler = EpochBatchSampler(**{"length": 11, "batch_size": 4, "seed": 5} | options)
    return lambda epoch, image=0: sampler.set_position(epoch, image) or list(sampler)


def test_an_epoch_is_a_permutation_without_its_tail():
    whole = batches(batch_size=2)(3)
    assert [len(batch) for batch in whole] == [2] * 5
    assert {epoch for batch in whole for epoch, _ in batch} == {3}
    indices = [index for batch in whole for _, index in batch]
    assert len(set(indices)) == 10
    assert set(indices) < set(range(11))
    assert indices != sorted(indices)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [index for batch in batches(batch_size=1, seed=seed)(epoch) for _, index in batch]

    assert order(5, 0) == order(5, 0)
    assert len({tuple(order(seed, epoch)) for seed in (5, 6) for epoch in (0, 1)}) == 4


def test_position_in_mid_epoch():
    at = batches(batch_size=2)
    assert at(1, 6) == at(1)[3:]
    assert at(1, 10) == []


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (1, 2), (2, 2), (3, 1)])
def test_an_epoch_goes_on_with_other_batches(batch_size, world_size):
    """After three batches of two images come those that were not seen yet, each once."""
    order = [index for batch in batches(batch_size=1)(1) for _, index in batch]
    ranks = [batches(batch_size=batch_size, world_size=world_size, rank=rank)(1, 6) for rank in range(world_size)]
    rest = [index for parts in zip(*ranks, strict=True) for part in parts for _, index in part]
    whole = 5 // (batch_size * world_size) * batch_size * world_size
    assert rest == order[6 : 6 + whole]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_global_batches(world_size):
    alone = batches()(7)
    ranks = [batches(batch_size=4 // world_size, world_size=world_size, rank=rank)(7) for rank in range(world_size)]
    assert [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)] == alone
    assert len(alone) == 2


def test_length_is_that_of_the_epoch():
    sampler = EpochBatchSampler(11, 2, seed=0, world_size=2)
    sampler.set_position(4, 4)
    assert len(sampler) == 2
    assert len(list(sampler)) == 1


def test_too_few_images():
    assert len(EpochBatchSampler(8, 4, seed=0, world_size=2)) == 1
    with pytest.raises(UserError, match=r"7 images, fewer than one batch of 2 process\(es\) x 4 images; lower"):
        EpochBatchSampler(7, 4, seed=0, world_size=2)


@pytest.mark.parametrize(("length", "world_size"), [(11, 1), (11, 3), (2, 3)])
def test_evaluation_sees_every_sample_once(length, world_size):
    samplers = [EvalSampler(length, 2, world_size=world_size, rank=rank) for rank in range(world_size)]
    shards = [list(sampler) for sampler in samplers]
    assert sorted(key for shard in shards for batch in shard for key in batch) == [(0, i) for i in range(length)]
    assert [len(shard) for shard in shards] == [len(sampler) for sampler in samplers]
    assert all(len(batch) <= 2 for shard in shards for batch in shard)


@pytest.mark.parametrize(("pad_to", "size"), [(1, (9, 17)), (8, (16, 24)), (17, (17, 17)), (64, (64, 64))])
def test_batches_are_padded_to_multiples(pad_to, size):
    small, large = torch.ones(3, 9, 5), torch.ones(3, 4, 17)
    images, _ = collate_detection([(small, {}), (large, {})], pad_to)
    assert images.tensors.shape == (2, 3, *size)
    assert images.mask.shape == (2, *size)
    assert (~images.mask).sum((1, 2)).tolist() == [45, 68]
    assert images.tensors.sum().item() == 3 * (45 + 68)
    assert not images.tensors.movedim(1, -1)[images.mask].any()


def test_collate_by_hand():
    small, large = torch.ones(3, 1, 2), torch.full((3, 2, 1), 5.0)
    images, targets = collate_detection([(small, {"labels": 1}), (large, {"labels": 2})])
    assert images.tensors[:, 0].tolist() == [[[1, 1], [0, 0]], [[5, 0], [5, 0]]]
    assert images.mask.tolist() == [[[False, False], [True, True]], [[False, True], [False, True]]]
    assert targets == [{"labels": 1}, {"labels": 2}]


def loaded(num_workers, position=(2, 0)):
    sampler = EpochBatchSampler(11, 2, seed=5)
    loader = make_loader(Noise(), sampler, collate_detection, num_workers=num_workers, pin_memory=False)
    result = []
    for epoch, batch in (position, (position[0] + 1, 0)):
        sampler.set_position(epoch, batch)
        result += [
            (images.tensors.numpy().tobytes(), [tuple(target["key"].tolist()) for target in targets])
            for images, targets in loader
        ]
    return result


def test_workers_and_position_change_no_byte():
    alone = loaded(0)
    assert len(alone) == 10
    assert [keys[0][0] for _, keys in alone] == [2] * 5 + [3] * 5
    assert loaded(2) == alone
    assert loaded(2, position=(2, 6)) == alone[3:]
    assert loaded(0, position=(2, 6)) == alone[3:]


def test_processes_that_cannot_be_started_are_one_error(monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: ignored.append(str(error.exc_value)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    files: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                files.append(os.dup(0))
        os.close(files.pop())  # one is fewer than a loading process takes
        with pytest.raises(UserError, match=r"--num_workers 1: cannot start so many .* \(Too many open files\)"):
            iter(ProtectedLoader(torch.arange(4), num_workers=1))
        gc.collect()
        assert ignored == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for file in files:
            os.close(file)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_left_alone(num_workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    loaded(num_workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_workers_compute_with_one_thread():
    loader = make_loader(Noise(), EvalSampler(11, 4), collate_detection, num_workers=1, pin_memory=False)
    assert {int(target["threads"]) for _, targets in loader for target in targets} == {1}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_stay_one_line(num_workers):
    loader = make_loader(Broken(), EvalSampler(4, 2), collate_detection, num_workers=num_workers, pin_memory=False)
    told = error_of_first_batch(loader)
    assert told == "/some/where/0.jpg: empty file (0 bytes), not an image; replace or remove it"
