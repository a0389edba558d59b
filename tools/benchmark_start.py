"""What listing a large data set costs at the start of a run: a part of `benchmark.py scale`."""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path

import torch

from datasets.image_folder import UnlabelledImages
from tests.gloo import run_processes
from tools.memory import peak_megabytes, private_megabytes
from util import distributed

STARTS = {  # name -> whether there is an output folder to keep the listing in
    "every process lists": False,
    "first start": True,
    "later start": True,
}


def make_empty_files(root: Path, num_images: int, num_folders: int) -> None:
    """Empty files with names like ImageNet's, in folders that last changed an hour ago."""
    for folder in range(num_folders):
        path = root / f"n{folder:08d}"
        path.mkdir(parents=True)
        for number in range(folder, num_images, num_folders):
            os.close(os.open(path / f"n{folder:08d}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))
        os.utime(path, (time.time() - 3600,) * 2)
    os.utime(root, (time.time() - 3600,) * 2)


def print_starts(folder: Path, num_processes: int) -> None:
    """Print what listing costs so many processes of one machine: the slowest, and memory of one."""
    out = folder / f"out{num_processes}"
    out.mkdir()
    for name, keeps in STARTS.items():
        found = run_processes(_start, folder / "images", out if keeps else None, world_size=num_processes)
        seconds, own, peak = (max(values) for values in zip(*found, strict=True))
        print(f"{num_processes} x {name:<30}{seconds:>10.2f}{own:>18.0f}{peak:>12.0f}")


def _start(rank: int, root: Path, out: Path | None) -> tuple[float, float, float]:
    """Seconds, and megabytes that this process has to itself afterwards and at its peak, beyond those before."""
    os.environ["LOCAL_RANK"] = str(rank)
    own, peak = private_megabytes(os.getpid()), peak_megabytes(torch.device("cpu"))
    distributed.barrier()
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        images = UnlabelledImages.from_folder(root, out)
    path = images.path(len(images) - 1)
    seconds = time.perf_counter() - began
    assert path.is_file()
    return seconds, private_megabytes(os.getpid()) - own, peak_megabytes(torch.device("cpu")) - peak
