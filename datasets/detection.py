"""Labelled images for detection, from the records of any reader."""

from __future__ import annotations

import contextlib
import io
import os
from functools import cached_property

import numpy as np
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from datasets.images import STRICTLY, Reading, load_image
from datasets.records import DetectionRecords
from datasets.transforms import Transform
from util.logger import say
from util.run_summary import number_of


class DetectionDataset(Dataset):
    """``dataset[(epoch, index)]`` -> (image, target), a function of the seed, the epoch and the index alone.

    The image is float32 [3, H, W], the result of ``transforms``; the target is a dictionary of
        boxes: float32 [T, 4], cxcywh normalised by (W, H), without groups ("crowd"),
        labels: int64 [T],
        image_id: int64 [],
        orig_size: int64 [2], (height, width) of the upright file,
        size: int64 [2], (H, W).

    Attributes:
        categories: see :class:`DetectionRecords`.
        metric: "coco" or "voc": how the data set is evaluated.

    Raises (on reading a sample):
        DataError: the image cannot be read or does not have the annotated size; the message names the file.
    """

    def __init__(
        self,
        records: DetectionRecords,
        *,
        transforms: Transform,
        seed: int,
        reading: Reading = STRICTLY,
        tell: bool = True,
    ) -> None:
        self.reading = reading
        self.records = records
        self.transforms = transforms
        self.seed = seed
        if tell:
            say(f"{records.source}: {number_of(len(records), 'image')}, {records.dropped.describe()}")
            for note in records.notes:
                say(f"warning: {records.source}: {note}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, index = key
        records = self.records
        width, height = records.sizes[index].tolist()
        image = load_image(records.path(index), size=(width, height), reading=self.reading)
        rows = np.arange(records.offsets[index], records.offsets[index + 1])
        rows = rows[~records.crowd[rows]]
        target = {
            "boxes": records.boxes[rows],
            "labels": records.labels[rows],
            "image_id": records.image_ids[index],
            "orig_size": np.array([height, width]),
        }
        return self.transforms(image, target, np.random.default_rng((self.seed, epoch, index)))

    @property
    def categories(self) -> list[dict]:
        return self.records.categories

    @property
    def metric(self) -> str:
        return self.records.metric

    @property
    def num_objects(self) -> int:
        """Number of boxes to train on in the whole data set."""
        return int((~self.records.crowd).sum())

    @property
    def num_labels(self) -> int:
        """The largest label plus one; 91 for COCO, whose labels are its raw ids."""
        return max(category["label"] for category in self.categories) + 1

    @cached_property
    def coco(self) -> COCO:
        """The usable boxes in the form that pycocotools evaluates: bbox xywh in pixels.

        Objects marked ``difficult`` count like all others in COCO's scores; the devkit's scores ignore them.

        Annotations get new ids from 1 on, because pycocotools reads the id 0 as "unmatched".
        """
        id_of_label = {category["label"]: category["id"] for category in self.categories}
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [self._coco_image(index) for index in range(len(self))],
            "annotations": [
                annotation for index in range(len(self)) for annotation in self._coco_annotations(index, id_of_label)
            ],
            "categories": [{"id": c["id"], "name": c["name"]} for c in self.categories],
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            coco.createIndex()
        return coco

    def _coco_image(self, index: int) -> dict:
        width, height = self.records.sizes[index].tolist()
        path = os.fsdecode(self.records.paths[index])
        return {"id": int(self.records.image_ids[index]), "file_name": path, "width": width, "height": height}

    def _coco_annotations(self, index: int, id_of_label: dict[int, int]) -> list[dict]:
        records = self.records
        annotations = []
        for row in range(records.offsets[index], records.offsets[index + 1]):
            x0, y0, x1, y1 = records.boxes[row].tolist()
            annotations.append(
                {
                    "id": row + 1,
                    "image_id": int(records.image_ids[index]),
                    "category_id": id_of_label[int(records.labels[row])],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(records.areas[row]),
                    "iscrowd": int(records.crowd[row]),
                    "difficult": int(records.difficult[row]),
                }
            )
        return annotations
