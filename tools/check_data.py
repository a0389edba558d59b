"""Report on a labelled data set: its layout, its numbers, and doubtful entries.

    python tools/check_data.py DIR
    python tools/check_data.py DIR --dataset_file yolo --output_dir outputs/check_data

Prints the layout, images, boxes per class, sizes, objects per image, doubtful entries (number and examples of each
kind) and images that are both in training and validation. Writes report.json with all of them, and contact_sheet.jpg
with images and their boxes. Every image is read. Nothing in DIR is changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import DATASETS, labelled_or_auto, layout_of, reading_of, settle_format
from datasets.images import load_image
from datasets.records import DetectionRecords, some
from tools.checking.doubts import Doubt, doubts_of, doubts_of_classes, images_by_class
from tools.checking.images import Seen, alike, look_at, same_twice
from util.args import add_choice, add_image_file_arguments, add_owned_arguments
from util.check_args import at_least, check_data, check_owned_flags
from util.checkpoint import make_writable
from util.errors import DataError
from util.files import write_json
from util.plot_utils import contact_sheet, draw_boxes, save_picture
from util.recipes import format_of_typed_flags
from util.records import Choices
from util.script import run_script

SMALL, MEDIUM = 32**2, 96**2  # square pixels, COCO's limits
SHOWN_SIDE = 320  # pixels of the longer side on the contact sheet


def main(argv: list[str] | None = None) -> None:
    """Read the data set; print and write the report and the contact sheet."""
    args = parse(argv)
    layout = layout_of(args)
    splits = read_splits(args, set(layout.splits) | {"train"})
    print(f"\n{args.data_path or splits['train'].root}: {layout.title} (--dataset_file {args.dataset_file})")
    for split, where in layout.splits.items():
        print(f"  {split}: {where}")
    print(f"\n{table_of_splits(splits)}\n\n{table_of_classes(splits)}")
    seen = {split: look_at(records, reading_of(args), args.num_workers, split) for split, records in splits.items()}
    doubts = all_doubts(splits, seen)
    tell(doubts)
    make_writable(args.output_dir)
    report, sheet = Path(args.output_dir) / "report.json", Path(args.output_dir) / "contact_sheet.jpg"
    write_json(as_json(splits, doubts), report)
    save_picture(draw_sheet(splits["train"], seen["train"], args), sheet)
    print(f"\nwrote {report} and {sheet}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Complete and checked arguments.

    Raises:
        UserError: flags that cannot work, or no data set that is recognised.
    """
    choices = Choices(stage="finetune", datasets=labelled_or_auto())
    parser = argparse.ArgumentParser(
        "check_data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data_path", nargs="?", metavar="DIR", help="root folder of the data set")
    add_choice(parser, "dataset_file", choices.datasets)
    parser.add_argument("--output_dir", default="outputs/check_data", help="receives report.json and contact_sheet.jpg")
    parser.add_argument("--num_images", type=int, default=24, help="images on the contact sheet; default: 24")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read images; default: 2")
    add_image_file_arguments(parser)
    add_owned_arguments(parser, choices, "dataset_file")
    parser.set_defaults(damaged="skip")  # missing images are reported and not an error
    args = parser.parse_args(argv)
    args.dataset_file = args.dataset_file or format_of_typed_flags(args, choices).get("dataset_file", "auto")
    at_least(args, 1, "num_images", "max_image_pixels")
    at_least(args, 0, "num_workers")
    check_owned_flags(args, choices)
    check_data(args, choices.datasets[args.dataset_file], ("train",))
    settle_format(args)
    return args


def read_splits(args: argparse.Namespace, names: set[str]) -> dict[str, DetectionRecords]:
    """The annotations of the splits; "val" must have the classes of "train"."""
    read = DATASETS[args.dataset_file].read_labelled
    splits = {"train": read(args, "train", None)}
    if "val" in names:
        splits["val"] = read(args, "val", splits["train"].categories)
    return splits


def table_of_splits(splits: dict[str, DetectionRecords]) -> str:
    """One line per split."""
    rows = [["", "images", "without objects", "boxes", "an image", "most", "small", "medium", "large", "image sizes"]]
    for split, records in splits.items():
        counts, areas = np.diff(records.offsets), records.areas
        sizes = [int((areas < SMALL).sum()), int(((areas >= SMALL) & (areas < MEDIUM)).sum())]
        numbers = [len(records), int((counts == 0).sum()), len(records.boxes), f"{counts.mean():.1f}", counts.max()]
        rows.append([split, *numbers, *sizes, len(areas) - sum(sizes), image_sizes(records)])
    return in_columns(rows)


def image_sizes(records: DetectionRecords) -> str:
    """The size of the images, or the smallest and the largest one."""
    sizes = np.unique(records.sizes, axis=0)
    if len(sizes) == 1:
        return f"{sizes[0, 0]}x{sizes[0, 1]}"
    short = records.sizes.min(1)
    order = np.lexsort((records.sizes.max(1), short))
    first, last = records.sizes[order[0]], records.sizes[order[-1]]
    return f"{first[0]}x{first[1]} to {last[0]}x{last[1]}, short side mostly {int(np.median(short))}"


def table_of_classes(splits: dict[str, DetectionRecords]) -> str:
    """One line per class: its boxes and the images that show it, per split."""
    rows = [["class", *(f"{split} {what}" for split in splits for what in ("boxes", "images"))]]
    images = {split: images_by_class(records) for split, records in splits.items()}
    for category in splits["train"].categories:
        row = [category["name"]]
        for split, records in splits.items():
            row += [int((records.labels == category["label"]).sum()), images[split][category["name"]]]
        rows.append(row)
    return in_columns(rows)


def in_columns(rows: list[list[Any]]) -> str:
    """Cells of equal width; the first column is aligned left, the others right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def all_doubts(splits: dict[str, DetectionRecords], seen: dict[str, list[Seen]]) -> dict[str, list[Doubt]]:
    """Doubtful entries of each split, of the classes, and of both splits in common."""
    found = {}
    for split, records in splits.items():
        paths = records.relative_paths()
        unusable = [f"{paths[i]}: {one.reason}" for i, one in enumerate(seen[split]) if one.reason is not None]
        twice = [f"{paths[a]} = {paths[b]}" for a, b in same_twice(seen[split])]
        own = [Doubt("images that cannot be used (--damaged skip trains without them)", len(unusable), unusable)]
        own += [Doubt(note, 1, []) for note in records.notes] + doubts_of(records)
        own += [Doubt("images that look the same as an earlier one", len(twice), twice)]
        found[split] = [doubt for doubt in own if doubt.count]
    found["classes"] = doubts_of_classes(splits)
    if "val" in splits:
        names = {split: records.relative_paths() for split, records in splits.items()}
        both = [f"{names['train'][a]} = {names['val'][b]}" for a, b in alike(seen["train"], seen["val"])]
        what = "images to evaluate on that look the same as one to train on"
        found["train and val"] = [Doubt(what, len(both), both)] if both else []
    return found


def tell(doubts: dict[str, list[Doubt]]) -> None:
    """Print each kind with its count and some examples."""
    if not any(doubts.values()):
        print("\nnothing doubtful found")
    for place, found in doubts.items():
        if found:
            print(f"\ndoubtful in {place}:")
        for doubt in found:
            print(f"  {doubt.count} {doubt.what}" if doubt.places else f"  {doubt.what}")
            if doubt.places:
                print(f"    {some(doubt.places, doubt.count)}")


def as_json(splits: dict[str, DetectionRecords], doubts: dict[str, list[Doubt]]) -> dict[str, Any]:
    """The same numbers, with all places."""
    return {
        "splits": {
            split: {
                "images": len(records),
                "boxes": len(records.boxes),
                "images_without_objects": int((np.diff(records.offsets) == 0).sum()),
                "images_by_class": images_by_class(records),
            }
            for split, records in splits.items()
        },
        "doubtful": {
            place: [{"what": doubt.what, "count": doubt.count, "places": doubt.places} for doubt in found]
            for place, found in doubts.items()
        },
    }


def draw_sheet(records: DetectionRecords, seen: list[Seen], args: argparse.Namespace) -> Image.Image:
    """Images spread evenly over the training set, with their boxes and classes.

    Raises:
        DataError: no image can be used.
    """
    usable = [index for index, one in enumerate(seen) if one.reason is None]
    if not usable:
        raise DataError(f"{records.source}: no image can be used; the first is {records.path(0)}: {seen[0].reason}")
    names = {category["label"]: category["name"] for category in records.categories}
    count = min(args.num_images, len(usable))
    pictures = []
    for index in (usable[number * len(usable) // count] for number in range(count)):
        size = tuple(records.sizes[index].tolist())
        image = load_image(records.path(index), size, reading_of(args))
        rows = slice(records.offsets[index], records.offsets[index + 1])
        labels = records.labels[rows].tolist()
        texts = [names[label] for label in labels]
        zoom = SHOWN_SIDE / max(size)
        pictures.append(draw_boxes(image, records.boxes[rows], texts=texts, colours=labels, zoom=zoom))
    return contact_sheet(pictures, columns=6)


if __name__ == "__main__":
    run_script(main)
