"""Data sets, built from command-line arguments. Each format is one file, listed in :data:`DATASETS`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from datasets.coco import COCO
from datasets.detection import DetectionDataset
from datasets.image_folder import IMAGE_FOLDER, UnlabelledImages
from datasets.images import Reading
from datasets.layout import AUTO, Layout, recognise
from datasets.records import DetectionRecords
from datasets.transforms import detection_eval_transforms, detection_train_transforms
from datasets.tree import Tree
from datasets.voc import VOC
from datasets.voc_loose import VOC_LOOSE
from datasets.yolo import YOLO
from util.records import DataRecord

DATASETS = {"imagefolder": IMAGE_FOLDER, "coco": COCO, "voc": VOC, "yolo": YOLO, "voc_loose": VOC_LOOSE}
"""``--dataset_file`` -> its record. ``auto`` takes the first that finds its layout."""


def labelled() -> dict[str, DataRecord]:
    """The formats that have boxes to train on."""
    return {name: record for name, record in DATASETS.items() if record.read_labelled is not None}


def labelled_or_auto() -> dict[str, DataRecord]:
    """What ``--dataset_file`` can be for labelled data: recognised by content, or said."""
    return {"auto": AUTO, **labelled()}


def settle_format(args: Namespace) -> None:
    """Replace ``--dataset_file auto`` by the format that ``--data_path`` has.

    Raises:
        UserError: it has none that is known.
    """
    if args.dataset_file == "auto":
        args.dataset_file = recognise(args, labelled())


def layout_of(args: Namespace) -> Layout:
    """How the labelled data of ``--dataset_file`` lies; a format that has no ``find`` has all its splits."""
    record = DATASETS[args.dataset_file]
    found = record.find and record.find(args, Tree(args.data_path) if args.data_path else None)
    return found or Layout(title=record.title, splits=dict.fromkeys(record.splits if record.find is None else (), ""))


def build_detection(
    args: Namespace,
    split: str,
    mean: Sequence[float],
    std: Sequence[float],
    categories: list[dict] | None = None,
) -> DetectionDataset:
    """The labelled images of ``split``: "train" with augmentation, "val" without.

    Args:
        args: dataset_file, data_path, the format's own flags, scales, max_size, eval_size, eval_max_size,
            seed, damaged, max_image_pixels, allow_truncated.
        mean, std: per channel, as the backbone expects them.
        categories: those of the training set; None: those of the data set itself.

    Raises:
        UserError: the data set is missing or damaged.
    """
    return detection_dataset(DATASETS[args.dataset_file].read_labelled(args, split, categories), args, split, mean, std)


def detection_dataset(
    records: DetectionRecords,
    args: Namespace,
    split: str,
    mean: Sequence[float],
    std: Sequence[float],
    tell: bool = True,
) -> DetectionDataset:
    """These images as :func:`build_detection` prepares those of ``split``; ``tell``: print what is unusual of them."""
    if split == "train":
        transforms = detection_train_transforms(args.scales, args.max_size, mean, std, args.augment)
    else:
        transforms = detection_eval_transforms(args.eval_size, args.eval_max_size, mean, std)
    return DetectionDataset(records, transforms=transforms, seed=args.seed, reading=reading_of(args), tell=tell)


def reading_of(args: Namespace) -> Reading:
    """Which image files are accepted: max_image_pixels and allow_truncated of ``args``."""
    return Reading(args.max_image_pixels, args.allow_truncated)


def build_unlabelled(args: Namespace, split: str = "train") -> UnlabelledImages:
    """The images of any data set, without labels.

    Args:
        args: dataset_file, data_path and the format's own flags.
        split: "train" or "val"; ignored for a folder of images.

    Raises:
        UserError: no images were found.
    """
    return DATASETS[args.dataset_file].read_unlabelled(args, split)
