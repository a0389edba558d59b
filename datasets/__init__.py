"""Data sets, built from command-line arguments. Each format is one file, listed in :data:`DATASETS`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from datasets.coco import COCO
from datasets.detection import DetectionDataset
from datasets.image_folder import IMAGE_FOLDER, UnlabelledImages
from datasets.images import Reading
from datasets.transforms import detection_eval_transforms, detection_train_transforms
from datasets.voc import VOC
from util.records import DataRecord

DATASETS = {"imagefolder": IMAGE_FOLDER, "coco": COCO, "voc": VOC}
"""``--dataset_file`` -> its record."""


def labelled() -> dict[str, DataRecord]:
    """The formats that have boxes to train on."""
    return {name: record for name, record in DATASETS.items() if record.read_labelled is not None}


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
    records = DATASETS[args.dataset_file].read_labelled(args, split, categories)
    if split == "train":
        transforms = detection_train_transforms(args.scales, args.max_size, mean, std)
    else:
        transforms = detection_eval_transforms(args.eval_size, args.eval_max_size, mean, std)
    return DetectionDataset(records, transforms=transforms, seed=args.seed, reading=reading_of(args))


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
