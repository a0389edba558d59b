"""Checksums of checkpoints, and what their tensors may claim."""

import random
import zipfile

import pytest
import torch
from torch import nn

from util.archive import find_damage
from util.checkpoint import load_file
from util.errors import CheckpointError
from util.plain_content import what_is_wrong


@pytest.fixture
def whole(tmp_path):
    torch.save({"model": {"w": torch.randn(500), "v": torch.arange(4)}, "args": {"lr": 0.1}}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_a_flipped_bit_of_any_number_is_found(whole):
    content = whole.read_bytes()
    start = content.index(torch.load(whole)["model"]["w"].numpy().tobytes())
    rng = random.Random(0)
    for place in rng.sample(range(start, start + 2000), 20):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        whole.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"a\.pth: .*damaged \(the checksum of its part data/\d is wrong\)"):
            load_file(whole)


def test_a_flipped_bit_anywhere_changes_nothing_or_is_an_error(whole):
    """Some bytes mean nothing: what lies between the records, dates, the name of the archive."""
    content, value = whole.read_bytes(), load_file(whole)
    rng = random.Random(1)
    refused = 0
    for place in rng.sample(range(len(content)), 300):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        whole.write_bytes(changed)
        try:
            found = load_file(whole)
        except CheckpointError:
            refused += 1
            continue
        assert torch.equal(found["model"]["w"], value["model"]["w"])
        assert torch.equal(found["model"]["v"], value["model"]["v"])
        assert found["args"] == value["args"]
    assert refused > 100


def test_files_without_checksums_are_taken(tmp_path):
    value = {"w": torch.randn(30)}
    torch.save(value, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(value, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "without.pth"):
        assert find_damage(tmp_path / name) is None
        assert torch.equal(load_file(tmp_path / name)["w"], value["w"])


def test_a_compressed_archive_does_not_unpack_to_gigabytes(whole, tmp_path):
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record) + bytes(10**7))
    with pytest.raises(CheckpointError, match="it unpacks to more than it holds"):
        load_file(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.zeros(1).expand(10**6, 10**4), "claim 40,000,000,000 bytes"),
        (torch.zeros(3, 3).to_sparse(), "sparse_coo"),
        (torch.zeros(3, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "quantized"),
    ],
    ids=["stride 0", "sparse", "meta", "quantized"],
)
def test_unusual_tensors_are_refused(tmp_path, tensor, told):
    torch.save({"model": {"deep": [{"w": tensor}]}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: refused: .*{told}"):
        load_file(tmp_path / "a.pth")


def test_a_storage_larger_than_the_file(whole):
    """Torch believes the number that the pickle gives and would read what lies behind the file in memory."""
    content = {"w": torch.zeros(10**6)}
    assert "need 4,000,000 bytes and it has 1,000" in what_is_wrong(content, 1000)


def test_shared_and_nested_containers_are_walked_once():
    deep = []
    for _ in range(60):  # 2^60 paths
        deep = [deep, deep]
    shared = nn.Linear(3, 3).state_dict()
    assert what_is_wrong({"a": deep, "b": [shared] * 9, "c": (shared, {"d": {1, 2}})}, 1000) is None
