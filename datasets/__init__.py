"""Data sets, built from command-line arguments: ``DATASETS`` with labels, ``UNLABELLED`` without."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from datasets.coco import coco_image_folder, coco_paths, read_coco
from datasets.detection import DetectionDataset
from datasets.image_folder import UnlabelledImages
from datasets.records import DetectionRecords
from datasets.transforms import detection_eval_transforms, detection_train_transforms
from datasets.voc import VocSet, read_voc, voc_sets


def _coco_files(args: Namespace, split: str) -> tuple[Path, Path]:
    given = {"train": (args.train_ann, args.train_images), "val": (args.val_ann, args.val_images)}
    annotations, images = given[split]
    if annotations is None:
        return coco_paths(Path(args.data_path), split)
    return Path(annotations), Path(images)


def _voc_sets(args: Namespace, split: str) -> list[VocSet]:
    train = split == "train"
    return voc_sets(Path(args.data_path), args.voc_train if train else args.voc_val, train=train)


def _read_coco(args: Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    annotations, images = _coco_files(args, split)
    return read_coco(images, annotations, categories)


def _read_voc(args: Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    return read_voc(Path(args.data_path), _voc_sets(args, split), categories)


def _coco_images(args: Namespace, split: str) -> UnlabelledImages:
    return UnlabelledImages.from_folder(coco_image_folder(Path(args.data_path), split))


def _voc_images(args: Namespace, split: str) -> UnlabelledImages:
    return UnlabelledImages.from_voc(Path(args.data_path), _voc_sets(args, split))


# name of --dataset_file -> reader(args, split, categories)
DATASETS = {"coco": _read_coco, "voc": _read_voc}
# name of --dataset_file -> reader(args, split)
UNLABELLED = {
    "imagefolder": lambda args, split: UnlabelledImages.from_folder(Path(args.data_path)),
    "coco": _coco_images,
    "voc": _voc_images,
}


def build_detection(
    args: Namespace,
    split: str,
    mean: Sequence[float],
    std: Sequence[float],
    categories: list[dict] | None = None,
) -> DetectionDataset:
    """The labelled images of ``split``: "train" with augmentation, "val" without.

    Args:
        args: dataset_file, data_path, train_ann, train_images, val_ann, val_images, voc_train, voc_val, scales,
            max_size, eval_size, eval_max_size, seed.
        mean, std: of the channels, what the backbone wants.
        categories: those of the training set, which an evaluation must keep to.

    Raises:
        UserError: the data set is not there or damaged.
    """
    records = DATASETS[args.dataset_file](args, split, categories)
    if split == "train":
        transforms = detection_train_transforms(args.scales, args.max_size, mean, std)
    else:
        transforms = detection_eval_transforms(args.eval_size, args.eval_max_size, mean, std)
    return DetectionDataset(records, transforms=transforms, seed=args.seed)


def build_unlabelled(args: Namespace, split: str = "train") -> UnlabelledImages:
    """The images of any data set, without labels.

    Args:
        args: dataset_file, data_path, voc_train (split "train"), voc_val (split "val").
        split: "train" or "val"; a folder of images has but one.

    Raises:
        UserError: no images there.
    """
    return UNLABELLED[args.dataset_file](args, split)
