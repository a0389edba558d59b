"""Propose regions for a data set, once, on all cores.

    python tools/make_proposals.py --method edgebox --data_path DIR --output_dir OUT
    python tools/make_proposals.py ... --shard 1/8        on one of eight machines that share a disk
    python tools/make_proposals.py ... --merge 8          when all eight have finished

If the process is killed, the same command continues. Until everything is done, the results are in OUT.parts; OUT is
never half written. Images that cannot be read have no boxes; OUT/failed.json lists them with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import DATASETS, build_unlabelled, reading_of
from datasets.image_folder import UnlabelledImages
from datasets.images import Reading, load_image
from datasets.loader import ProtectedLoader
from datasets.proposals.journal import Journal, Outcome, encode, read_journal
from datasets.proposals.methods import METHODS, ProposalMethod
from datasets.proposals.store import FAILED, ProposalStore, fingerprint, stream_proposals
from util.args import add_image_file_arguments, add_owned_arguments
from util.check_args import check_owned_flags
from util.checkpoint import make_writable
from util.errors import DataError, UserError, one_line
from util.inputs import Unreadable, read_bytes
from util.parser import DocFormatter, Parser
from util.records import Choices
from util.script import run_script

SYNC_SECONDS = 5.0  # the most work lost in a power failure; a killed process loses less


class Proposing(Dataset):
    """``dataset[index]`` -> journal record of image ``index``."""

    def __init__(self, images: UnlabelledImages, method: ProposalMethod, reading: Reading) -> None:
        self.images = images
        self.reading = reading
        self.method = method

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bytes:
        return encode(self.outcome(index))

    def outcome(self, index: int) -> Outcome:
        """Boxes and scores, or why the image failed."""
        try:
            return self.method(load_image(self.images.path(index), reading=self.reading), index)
        except DataError as error:
            return one_line(error)


def main(argv: list[str] | None = None) -> None:
    """Find the images, write the journal of each shard, merge them into the proposals."""
    args = make_parser().parse_args(argv)
    number, shards = check(args)
    images, method = build_images(args), build_method(args)
    paths = images.relative_paths()
    plan = {"method": method.name, "parameters": method.parameters(), "num_images": len(paths)}
    plan |= {"fingerprint": fingerprint(paths), "shards": shards}
    out = Path(args.output_dir).resolve()
    parts = out.with_name(f"{out.name}.parts")
    if out.exists():
        ProposalStore(out).check(paths, method.name)
        check_parameters(out, method)
        shutil.rmtree(parts, ignore_errors=True)  # left over if the process was killed just after merging
        print(f"{out}: already complete")
        return
    make_writable(parts)
    try:
        if not args.merge:
            propose(
                Proposing(images, method, reading_of(args)),
                journal_of(parts, number, shards),
                plan,
                number,
                args.num_workers,
            )
        if args.shard is None:
            merge(out, parts, paths, plan)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{parts}: cannot be written ({reason}); the same command continues from here") from None


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = Parser("make_proposals.py", description=__doc__, formatter_class=DocFormatter)
    parser.add_argument("--method", choices=list(METHODS), default="edgebox")
    parser.add_argument("--output_dir", required=True, help="the folder to write, for --proposal_dir; must not exist")
    parser.add_argument("--dataset_file", choices=list(DATASETS), default=next(iter(DATASETS)))
    parser.add_argument("--data_path", required=True, help="root folder of the data set, as for main_pretrain.py")
    parser.add_argument("--split", choices=["train", "val"], default="train", help="of data that are split")
    parser.add_argument("--list", metavar="FILE", help="only the images in FILE: one path below --data_path per line")
    add_image_file_arguments(parser)
    parser.add_argument("--max_boxes", type=int, default=64, help="the most an image gets")
    parser.add_argument(
        "--size",
        type=int,
        help="edgebox: short side in pixels to which larger images are reduced, default 320; selective_search: side "
        "of the square to which all images are resized, default 128; 0: full size, slower",
    )
    parser.add_argument("--edge_model", metavar="FILE", help="edgebox: structured forest of OpenCV, for better edges")
    parser.add_argument("--seed", type=int, help="random: default 0")
    parser.add_argument("--shard", metavar="I/N", help="make only the I-th (1..N) of N parts; --merge N joins them")
    parser.add_argument("--merge", metavar="N", type=int, help="join the parts of N finished shards")
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    add_owned_arguments(parser, Choices(stage="proposals", datasets=DATASETS), "dataset_file")
    return parser


def check(args: argparse.Namespace) -> tuple[int, int]:
    """Check the flags; return (number of the shard, from 1; number of shards).

    Raises:
        UserError: flags that cannot work; the message names them.
    """
    for name, least in (
        ("max_boxes", 1),
        ("max_image_pixels", 1),
        ("size", 0),
        ("seed", 0),
        ("merge", 1),
        ("num_workers", 1),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    for name, methods in (
        ("size", ("edgebox", "selective_search")),
        ("edge_model", ("edgebox",)),
        ("seed", ("random",)),
    ):
        if getattr(args, name) is not None and args.method not in methods:
            raise UserError(f"--{name} goes with --method {' or '.join(methods)}, not {args.method}")
    check_owned_flags(args, Choices(stage="proposals", datasets=DATASETS))
    if args.split not in DATASETS[args.dataset_file].splits:
        others = " or ".join(name for name, record in DATASETS.items() if args.split in record.splits)
        raise UserError(f"--split {args.split} goes with --dataset_file {others}, not {args.dataset_file}")
    folders = [name for name, record in DATASETS.items() if record.read_labelled is None]
    if args.list and args.dataset_file not in folders:
        raise UserError(f"--list goes with --dataset_file {' or '.join(folders)}, not {args.dataset_file}")
    if args.shard is None:
        return 1, args.merge or 1
    if args.merge:
        raise UserError("--shard makes a part, --merge joins the parts: choose one")
    number, slash, shards = args.shard.partition("/")
    if not (slash and number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards)):
        raise UserError(f"--shard {args.shard}: write I/N with I from 1 to N, for example 1/8 to 8/8 for eight shards")
    return int(number), int(shards)


def build_images(args: argparse.Namespace) -> UnlabelledImages:
    """The images: those that main_pretrain.py finds with the same flags, or those of ``--list``.

    Raises:
        UserError: no images were found.
    """
    if args.list is None:
        return build_unlabelled(args, args.split)
    try:
        lines = os.fsdecode(read_bytes(args.list)).splitlines()
    except Unreadable as error:
        raise DataError(f"{args.list}: cannot be read as a list of images ({error})") from None
    if not Path(args.data_path).is_dir():
        raise DataError(f"{args.data_path}: no such folder of images")
    paths = [line.strip() for line in lines if line.strip()]
    if not paths:
        raise DataError(f"{args.list}: names no images; write one path per line")
    return UnlabelledImages(args.data_path, paths)


def build_method(args: argparse.Namespace) -> ProposalMethod:
    """The method with the parameters that were passed."""
    given = {name: getattr(args, name) for name in ("size", "edge_model", "seed")}
    return METHODS[args.method](args.max_boxes, **{name: value for name, value in given.items() if value is not None})


def check_parameters(out: Path, method: ProposalMethod) -> None:
    """Raise DataError if ``out`` was made with other parameters."""
    there = ProposalStore(out).parameters
    for name, value in method.parameters().items():
        if there.get(name) != value:
            raise DataError(
                f"{out}: made with {name} {there.get(name)}, not {value}; remove it or write to another folder"
            )


def journal_of(parts: Path, number: int, shards: int) -> Path:
    """The journal of shard ``number`` (from 1)."""
    return parts / f"{number}-of-{shards}.journal"


def bounds(plan: dict[str, Any], number: int) -> tuple[int, int]:
    """First image and last image + 1 of shard ``number``. Shards are contiguous, so merging them is appending."""
    length, shards = plan["num_images"], plan["shards"]
    return length * (number - 1) // shards, length * number // shards


def propose(dataset: Proposing, path: Path, plan: dict[str, Any], number: int, num_workers: int) -> None:
    """Process all images of one shard that its journal does not have yet."""
    first, end = bounds(plan, number)
    journal = Journal(path, plan)
    begun, started = journal.done, time.monotonic()
    if begun:
        print(f"{path.name}: {begun} of {end - first} images are already done")
    loader = ProtectedLoader(
        dataset,
        batch_size=None,
        sampler=range(first + begun, end),
        num_workers=num_workers,
        collate_fn=bytes,
        prefetch_factor=16,
    )
    bar = tqdm(total=end - first, initial=begun, unit="images", disable=not sys.stderr.isatty(), smoothing=0.05)
    synced = started
    try:
        for record in loader:
            journal.append(record)
            bar.update()
            if time.monotonic() - synced > SYNC_SECONDS:
                journal.sync()
                synced = time.monotonic()
    finally:
        bar.close()
        journal.close()
    rate = (end - first - begun) / max(time.monotonic() - started, 1e-9)
    print(f"{path.name}: {end - first} images done, {rate:.1f} images/s with {num_workers} processes")


def merge(out: Path, parts: Path, paths: list[str], plan: dict[str, Any]) -> None:
    """Join the journals of all shards into the proposals ``out``. Reads them twice, with one image in memory at a time.

    Raises:
        DataError: a shard is missing or incomplete.
    """
    counts = np.zeros(len(paths), dtype=np.int64)
    failed = []
    index = -1
    for index, outcome in enumerate(read_shards(parts, plan)):
        if isinstance(outcome, str):
            failed.append({"path": paths[index], "reason": outcome})
        else:
            counts[index] = len(outcome[1])
    stream_proposals(
        out,
        paths=paths,
        counts=counts,
        proposals=(empty() if isinstance(outcome, str) else outcome for outcome in read_shards(parts, plan)),
        method=plan["method"],
        parameters=plan["parameters"],
        scratch=parts,
        extra_files={FAILED: json.dumps(failed, indent=2) + "\n"},
    )
    shutil.rmtree(parts)
    bare = int((counts == 0).sum()) - len(failed)
    print(f"wrote {out}: {counts.sum()} boxes of {len(paths)} images; {bare} without boxes, {len(failed)} failed")
    if failed:
        print(f"the first failure: {failed[0]['reason']}; {out / FAILED} lists all")


def read_shards(parts: Path, plan: dict[str, Any]) -> Iterator[Outcome]:
    """The outcomes of all images in order.

    Raises:
        DataError: a shard is missing or incomplete.
    """
    for number in range(1, plan["shards"] + 1):
        first, end = bounds(plan, number)
        path = journal_of(parts, number, plan["shards"])
        done = 0
        for outcome in read_journal(path, plan):
            done += 1
            yield outcome
        if done != end - first:
            raise DataError(f"{path}: has {done} of {end - first} images; finish --shard {number}/{plan['shards']}")


def empty() -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of an image that failed."""
    return np.empty((0, 4), dtype=np.float32), np.empty(0, dtype=np.float32)


if __name__ == "__main__":
    run_script(main, "interrupted; the same command continues from here")
