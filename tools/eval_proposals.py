"""Recall of proposals: how many of the labelled objects are covered by one of the best K boxes.

    python tools/eval_proposals.py --data_path DIR --proposal_dir OUT --json recall.json
    python tools/eval_proposals.py ... --proposal_dir EDGEBOX RANDOM --plot recall.png

Prints for each folder of proposals a table of the recall at 1, 10 and 100 boxes by IoU threshold. Boxes are matched
best first, each to the free object that it overlaps most, like COCO's average recall without classes. Crowds and
objects marked difficult do not count.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import DATASETS, labelled_or_auto, settle_format
from datasets.proposals.store import ProposalStore
from datasets.records import DetectionRecords
from util.args import add_choice, add_owned_arguments
from util.check_args import check_data, check_owned_flags
from util.errors import DataError, UserError
from util.files import write_json
from util.optional import require
from util.parser import DocFormatter, Parser
from util.plot_utils import save_figure
from util.recipes import format_of_typed_flags
from util.records import Choices
from util.script import run_script

COUNTS = (1, 10, 100)
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


def main(argv: list[str] | None = None) -> None:
    """Read the labelled data set and the proposals; print a table, write JSON and a plot."""
    args = make_parser().parse_args(argv)
    args.dataset_file = args.dataset_file or format_of_typed_flags(args, labelled_choices()).get("dataset_file", "auto")
    check(args)
    settle_format(args)
    records = DATASETS[args.dataset_file].read_labelled(args, args.split, None)
    stores = {folder: ProposalStore(folder) for folder in args.proposal_dir}
    results = {folder: recall(records, store) for folder, store in stores.items()}
    objects = int((~(records.crowd | records.difficult)).sum())
    print(f"{records.source}: {len(records)} images, {objects} objects")
    for folder, table in results.items():
        print(f"\n{folder} ({stores[folder].method})\n{format_table(table)}")
    if args.json:
        write_json(as_json(results, objects), args.json)
    if args.plot:
        plot(results, Path(args.plot))


def make_parser() -> argparse.ArgumentParser:
    """The flags; those of the data set are main_finetune.py's."""
    parser = Parser("eval_proposals.py", description=__doc__, formatter_class=DocFormatter)
    parser.add_argument("--proposal_dir", nargs="+", required=True, metavar="DIR", help="folders to compare")
    choices = labelled_choices()
    add_choice(parser, "dataset_file", choices.datasets)
    parser.add_argument("--data_path", help="root folder of the data set")
    parser.add_argument("--split", choices=["train", "val"], default="val")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw recall over IoU into this PNG file")
    add_owned_arguments(parser, choices, "dataset_file")
    parser.set_defaults(damaged="error")  # annotated images that are missing are an error
    return parser


def labelled_choices() -> Choices:
    """The data formats that have objects to find."""
    return Choices(stage="finetune", datasets=labelled_or_auto())


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that cannot work."""
    choices = labelled_choices()
    check_owned_flags(args, choices)
    check_data(args, choices.datasets[args.dataset_file], (args.split,))
    for out in (args.json, args.plot):
        if out and not Path(out).parent.is_dir():
            raise UserError(f"{out}: there is no folder {Path(out).parent}; create it first")


def recall(records: DetectionRecords, store: ProposalStore) -> np.ndarray:
    """[len(COUNTS), len(THRESHOLDS)] recall in [0, 1] of the objects of ``records``.

    Raises:
        DataError: an image has no entry in the proposals, or there are no objects at all.
    """
    place = {store.path(index): index for index in range(len(store))}
    found = np.zeros((len(COUNTS), len(THRESHOLDS)), dtype=np.int64)
    objects = 0
    for index, path in enumerate(map(os.fsdecode, records.paths)):
        if path not in place:
            raise DataError(f"{store.folder}: no proposals for {path}; make them for the images of {records.source}")
        rows = np.arange(records.offsets[index], records.offsets[index + 1])
        rows = rows[~(records.crowd[rows] | records.difficult[rows])]
        boxes = store.boxes(place[path])[: max(COUNTS)]
        found += matches(boxes, records.boxes[rows])
        objects += len(rows)
    if not objects:
        raise DataError(f"{records.source}: no objects to find; choose a data set with boxes")
    return found / objects


def matches(proposals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[len(COUNTS), len(THRESHOLDS)] number of objects that the best K proposals find.

    Args:
        proposals: [N, 4] xyxy, best first.
        truth: [T, 4] xyxy.
    """
    overlap = box_iou(torch.from_numpy(proposals).double(), torch.from_numpy(truth).double()).numpy()
    first = np.full((len(THRESHOLDS), len(truth)), np.inf)  # the proposal that found each object
    for row, threshold in enumerate(THRESHOLDS):
        for proposal in np.flatnonzero((overlap >= threshold).any(axis=1)):
            free = np.where(np.isinf(first[row]), overlap[proposal], -1)
            if free.max() >= threshold:
                first[row, np.flatnonzero(free == free.max())[-1]] = proposal  # on ties the last one, as in COCO
    return np.stack([(first < count).sum(axis=1) for count in COUNTS])


def format_table(table: np.ndarray) -> str:
    """Recall by number of boxes and IoU, as text; the last column is the mean (COCO's average recall)."""
    lines = ["boxes  IoU " + " ".join(f"{threshold:5.2f}" for threshold in THRESHOLDS) + "   mean"]
    for count, row in zip(COUNTS, table, strict=True):
        lines.append(f"{count:5d}      " + " ".join(f"{value:5.3f}" for value in row) + f"  {row.mean():5.3f}")
    return "\n".join(lines)


def as_json(results: dict[str, np.ndarray], objects: int) -> dict[str, Any]:
    """``{"thresholds", "objects", "recall": {folder: {boxes: [by threshold]}}}``."""
    recalls = {
        folder: {str(count): row.tolist() for count, row in zip(COUNTS, table, strict=True)}
        for folder, table in results.items()
    }
    return {"thresholds": THRESHOLDS, "objects": objects, "recall": recalls}


def plot(results: dict[str, np.ndarray], out: Path) -> None:
    """Plot recall over the IoU threshold: one panel per number of boxes, one line per folder.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "matplotlib", "--plot")
    figure = figure_module.Figure(figsize=(4 * len(COUNTS), 3.2), layout="constrained")
    for panel, count in enumerate(COUNTS):
        axes = figure.add_subplot(1, len(COUNTS), panel + 1)
        axes.set(title=f"{count} box{'es' if count > 1 else ''}", xlabel="IoU", ylabel="recall", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        for folder, name in zip(results, short_names(list(results)), strict=True):
            axes.plot(THRESHOLDS, results[folder][panel], marker="o", markersize=3, label=name)
        axes.legend(fontsize="small")
    save_figure(figure, out)


def short_names(folders: Sequence[str]) -> list[str]:
    """Names of the folders, or their paths if names repeat."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


if __name__ == "__main__":
    run_script(main)
