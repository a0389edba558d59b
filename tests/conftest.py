"""Shared fixtures."""

import os
from pathlib import Path

import pytest
import torch

from tests.tiny import write_data_set

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photographs and labelled sets (SIAMESE_DETR_DATA, default ../shared/data); skips where absent."""
    folder = Path(os.environ.get("SIAMESE_DETR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SIAMESE_DETR_DATA")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tiny labelled images of two categories."""
    return write_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
