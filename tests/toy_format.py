"""A data format in one file: ``labels.txt`` beside the images, each line ``FILE WIDTH HEIGHT X0 Y0 X1 Y1``."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.image_folder import UnlabelledImages
from datasets.records import DetectionRecords, RecordBuilder
from util.records import DataRecord, Flag


def _read_labelled(args: argparse.Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    path = Path(args.label_file or Path(args.data_path) / "labels.txt")
    builder = RecordBuilder()
    for number, line in enumerate(path.read_text().splitlines()):
        name, *numbers = line.split()
        width, height, *box = map(int, numbers)
        builder.add_box(builder.add_image(name, number, (width, height)), tuple(box), 0)
    return builder.pack(
        root=Path(args.data_path),
        source=str(path),
        metric="coco",
        categories=[{"label": 0, "id": 1, "name": "thing"}],
        place=lambda n, image: f"line {n + 1}",
    )


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    return UnlabelledImages.from_folder(args.data_path)


_FILE = Flag(name="label_file", help="the labels; default: labels.txt", options={"metavar": "FILE"}, is_place=True)

TOY_FORMAT = DataRecord(
    title="toy labels",
    read_labelled=_read_labelled,
    read_unlabelled=_read_unlabelled,
    flags={"finetune": (_FILE,)},
    max_steps=2,
    pretraining={"toy": {"toy_weight": 5.0}},
)
