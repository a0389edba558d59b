"""Public checkpoints pickle their arguments and scalars of numpy; nothing else is let in."""

import argparse
import io
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch

from util.checkpoint import load_file
from util.errors import CheckpointError

SCALARS = [
    np.float64(3.25),
    np.float32(-0.5),
    np.float16(2),
    np.int64(-7),
    np.int32(8),
    np.uint8(255),
    np.bool_(True),
]


def save(value: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_arguments_and_scalars_are_read(tmp_path: Path, legacy: bool) -> None:
    args = argparse.Namespace(lr=1e-4, betas=(0.9, np.float64(0.999)), dilation=True, device=torch.device("cpu"))
    content = {"model": {"w": torch.ones(2)}, "args": args, "scores": SCALARS}
    read = load_file(save(content, tmp_path / "f.pth", legacy=legacy))
    assert type(read["args"]) is argparse.Namespace
    assert vars(read["args"]) == vars(args)
    assert read["scores"] == SCALARS
    assert all(type(score) in (int, float, bool) for score in read["scores"])


def test_scalars_of_numpy_1_are_read(tmp_path: Path) -> None:
    if "numpy._core" not in pickle.dumps(np.float64(1), protocol=2).decode("latin1"):
        pytest.skip("this numpy writes them under that name anyway")
    stored = save({"scores": SCALARS}, tmp_path / "f.pth", legacy=True).read_bytes()
    (tmp_path / "old.pth").write_bytes(stored.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_file(tmp_path / "old.pth")["scores"] == SCALARS


class Arguments(argparse.Namespace):
    """A subclass could do anything when it is rebuilt."""


class Rebuilt:
    """Pickled as a call of ``function(*values)``."""

    def __init__(self, function: object, *values: object) -> None:
        self.call = (function, values)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Arguments(lr=1),
        np.array([1.0, 2.0]),
        np.array([(1, 2.0)], dtype="i4,f8")[0],
        np.datetime64("2020-01-01"),
        np.str_("text"),
        Path("/tmp"),
        Rebuilt(np.dtype, "O"),
        Rebuilt(print, "code ran"),
        argparse.Namespace(inner=Rebuilt(print, "code ran")),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_everything_else_is_refused(tmp_path: Path, value: object, legacy: bool, capsys: pytest.CaptureFixture) -> None:
    path = save({"model": {}, "args": value}, tmp_path / "f.pth", legacy=legacy)
    with pytest.raises(CheckpointError, match=r"f\.pth: refused") as error:
        load_file(path)
    assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_the_exceptions_end_with_the_reading(tmp_path: Path) -> None:
    path = save({"args": argparse.Namespace()}, tmp_path / "f.pth")
    load_file(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(path.read_bytes()), weights_only=True)


def test_a_real_pickle_asks_for_these_globals_alone(tmp_path: Path) -> None:
    raw = pickle.dumps({"args": argparse.Namespace(a=np.float64(1))}, protocol=2)
    asked = {argument for code, argument, _ in pickletools.genops(raw) if code.name == "GLOBAL"}
    assert {name.replace("numpy._core", "numpy.core") for name in asked} <= {
        "argparse Namespace",
        "numpy dtype",
        "numpy.core.multiarray scalar",
        "_codecs encode",
    }
