"""The labelled data set as training and evaluation see it, and its construction from arguments."""

import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.cocoeval import COCOeval

from datasets import build_detection, build_unlabelled
from datasets.detection import DetectionDataset
from datasets.images import MAX_PIXELS
from datasets.loader import EpochBatchSampler, EvalSampler, collate_detection, make_loader
from datasets.records import RecordBuilder
from datasets.transforms import ToTensor, detection_train_transforms
from tests.datasets.loading import error_of_first_batch
from util.errors import DataError, UserError

CATEGORIES = [{"label": 0, "id": 3, "name": "cat"}, {"label": 2, "id": 5, "name": "dog"}]
PLAIN = ToTensor([0.0] * 3, [1.0] * 3)


def records_of(folder, sizes, boxes):
    """``boxes``: each (image, xyxy, label, further arguments)."""
    builder = RecordBuilder()
    for number, size in enumerate(sizes):
        image = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        builder.add_image(f"{number}.png", 70 + number, size)
    for image, box, label, options in boxes:
        builder.add_box(image, box, label, **options)
    place = "box {} of image {}".format
    return builder.pack(root=folder, source="made", metric="coco", categories=CATEGORIES, place=place)


@pytest.fixture
def records(tmp_path):
    boxes = [
        (1, (0, 0, 20, 10), 2, {}),
        (0, (10, 10, 30, 20), 0, {"area": 55.5}),
        (0, (0, 0, 40, 40), 2, {"crowd": True}),
        (0, (5, 5, 15, 15), 2, {"difficult": True}),
        (0, (5, 5, 5, 15), 0, {}),
    ]
    return records_of(tmp_path, [(40, 40), (20, 30), (25, 25)], boxes)


def test_sample_by_hand(records, tmp_path):
    dataset = DetectionDataset(records, transforms=PLAIN, seed=0)
    assert len(dataset) == 3
    image, target = dataset[4, 0]
    expected = torch.from_numpy(np.asarray(Image.open(tmp_path / "0.png")).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(image, expected)
    assert target["boxes"].tolist() == [[0.5, 0.375, 0.5, 0.25], [0.25, 0.25, 0.25, 0.25]], "without the crowd"
    assert target["labels"].tolist() == [0, 2]
    assert target["image_id"].item() == 70
    assert dataset[0, 1][1]["orig_size"].tolist() == dataset[0, 1][1]["size"].tolist() == [30, 20]
    assert dataset[0, 2][1]["boxes"].shape == (0, 4)
    assert {name: (value.dtype, value.ndim) for name, value in target.items()} == {
        "boxes": (torch.float32, 2),
        "labels": (torch.int64, 1),
        "image_id": (torch.int64, 0),
        "orig_size": (torch.int64, 1),
        "size": (torch.int64, 1),
    }


def test_attributes_and_the_line_told(records, capsys):
    dataset = DetectionDataset(records, transforms=PLAIN, seed=0)
    told = "made: 3 images, 1 of 5 boxes dropped: no area inside the image (box 4 of image 0)\n"
    assert capsys.readouterr().out == told
    assert (dataset.metric, dataset.num_labels) == ("coco", 3)
    assert dataset.categories == CATEGORIES


def test_coco_object(records, capsys):
    dataset = DetectionDataset(records, transforms=PLAIN, seed=0)
    capsys.readouterr()
    coco = dataset.coco
    assert capsys.readouterr().out == ""
    assert coco is dataset.coco
    assert coco.imgs[71] == {"id": 71, "file_name": "1.png", "width": 20, "height": 30}
    assert sorted(coco.anns) == [1, 2, 3, 4]
    boxes = [(a["image_id"], a["category_id"], a["bbox"], a["area"]) for a in coco.dataset["annotations"]]
    assert boxes == [
        (70, 3, [10, 10, 20, 10], 55.5),
        (70, 5, [0, 0, 40, 40], 1600),
        (70, 5, [5, 5, 10, 10], 100),
        (71, 5, [0, 0, 20, 10], 200),
    ]
    assert [a["iscrowd"] for a in coco.dataset["annotations"]] == [0, 1, 0, 0]
    assert [a["difficult"] for a in coco.dataset["annotations"]] == [0, 0, 1, 0]
    assert coco.cats == {3: {"id": 3, "name": "cat"}, 5: {"id": 5, "name": "dog"}}


def test_same_sample_from_seed_epoch_index(records):
    transforms = detection_train_transforms([24, 32, 40], 60, [0.5] * 3, [0.5] * 3)
    dataset = DetectionDataset(records, transforms=transforms, seed=1)
    torch.manual_seed(0)
    image, target = dataset[3, 0]
    dataset[9, 1]
    torch.manual_seed(1)
    again, same_target = dataset[3, 0]
    assert torch.equal(image, again)
    assert torch.equal(target["boxes"], same_target["boxes"])
    other = DetectionDataset(records, transforms=transforms, seed=2)
    different = [data[epoch, 0][0] for data in (dataset, other) for epoch in range(6)]
    assert len({image.numpy().tobytes() for image in different}) == 12


def test_records_are_a_few_arrays(tmp_path):
    builder = RecordBuilder()
    for number in range(2000):
        builder.add_image(f"{number:012d}.jpg", number, (640, 480))
        for _ in range(7):
            builder.add_box(number, (1, 2, 3, 4), 0)
    records = builder.pack(root=Path("r"), source="s", metric="coco", categories=CATEGORIES, place=str)
    assert len(pickle.dumps(records)) < 2000 * (17 + 8 + 8 + 8 + 7 * (16 + 8 + 8 + 2)) + 2000


READING = {"damaged": "error", "allow_truncated": False, "max_image_pixels": MAX_PIXELS}


def arguments(**changes):
    names = "data_path train_ann train_images val_ann val_images voc_train voc_val".split()
    values = dict.fromkeys(names) | {
        "scales": [64, 96],
        "max_size": 160,
        "eval_size": 96,
        "eval_max_size": 160,
        "augment": "detr",
        "seed": 0,
    }
    return Namespace(**values | {"dataset_file": "coco"} | READING | changes)


def build(args, split, categories=None):
    return build_detection(args, split, [0.5] * 3, [0.5] * 3, categories)


def test_raccoon_by_arguments(real_data):
    args = arguments(data_path=str(real_data / "raccoon"))
    train, val = build(args, "train"), build(args, "val")
    assert (len(train), len(val), train.num_labels, train.metric) == (160, 40, 1, "coco")
    image, target = val[0, 0]
    assert min(image.shape[1:]) == 96
    assert len(target["boxes"]) == 1
    assert len(build_unlabelled(args)) == 160
    folder = real_data / "raccoon"
    custom = arguments(val_ann=str(folder / "annotations" / "instances_val.json"), val_images=str(folder / "val"))
    assert torch.equal(build(custom, "val")[0, 0][0], image)


def test_bccd_by_arguments(real_data):
    args = arguments(dataset_file="voc", data_path=str(real_data / "bccd"))
    train = build(args, "train")
    val = build(args, "val", train.categories)
    assert (len(train), len(val), train.num_labels, train.metric) == (292, 72, 3, "voc")
    assert len(build_unlabelled(args)) == 292
    args.voc_train = ["train"]
    assert (len(build(args, "train")), len(build_unlabelled(args))) == (205, 205)


@pytest.mark.parametrize(("name", "dataset_file"), [("raccoon", "coco"), ("bccd", "voc")])
def test_ground_truth_is_found_perfect(real_data, capsys, name, dataset_file):
    """The targets of the evaluation samples, brought back to pixels, are the boxes of ``.coco``."""
    dataset = build(arguments(dataset_file=dataset_file, data_path=real_data / name, eval_size=64), "val")
    detections = []
    id_of_label = {category["label"]: category["id"] for category in dataset.categories}
    for index in range(len(dataset)):
        _, target = dataset[0, index]
        height, width = target["orig_size"].tolist()
        boxes = target["boxes"] * torch.tensor([width, height, width, height])
        boxes[:, :2] -= boxes[:, 2:] / 2
        for bbox, label in zip(boxes.tolist(), target["labels"].tolist(), strict=True):
            found = {
                "image_id": target["image_id"].item(),
                "category_id": id_of_label[label],
                "bbox": bbox,
                "score": 1.0,
            }
            detections.append(found)
    evaluation = COCOeval(dataset.coco, dataset.coco.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0, abs=1e-9)


def batches_of(dataset, num_workers, world_size=1, rank=0, batch_size=4, first=0):
    sampler = EpochBatchSampler(len(dataset), batch_size, seed=0, world_size=world_size, rank=rank)
    sampler.set_position(1, first * batch_size * world_size)
    loader = make_loader(dataset, sampler, collate_detection, num_workers=num_workers, pin_memory=False)
    return [
        [
            (image[:, ~padding].numpy().tobytes(), target["image_id"].item(), target["boxes"].numpy().tobytes())
            for image, padding, target in zip(images.tensors, images.mask, targets, strict=True)
        ]
        for images, targets in loader
    ]


def test_same_bytes_from_workers_ranks_and_positions(records, tmp_path):
    boxes = [(index, (3, 3, 20, 20), 0, {}) for index in range(13)]
    transforms = detection_train_transforms([24, 32, 40], 60, [0.5] * 3, [0.5] * 3)
    dataset = DetectionDataset(records_of(tmp_path, [(40, 30)] * 13, boxes), transforms=transforms, seed=1)
    alone = batches_of(dataset, 0)
    assert len(alone) == 3
    assert len({sample for batch in alone for sample in batch}) == 12
    assert batches_of(dataset, 2) == alone
    assert batches_of(dataset, 2, first=1) == alone[1:]
    halves = [batches_of(dataset, 0, world_size=2, rank=rank, batch_size=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == alone


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_one_line_from_a_worker_too(records, tmp_path, num_workers):
    path = tmp_path / "1.png"
    path.write_bytes(path.read_bytes()[:-500])
    dataset = DetectionDataset(records, transforms=PLAIN, seed=0)
    loader = make_loader(dataset, EvalSampler(3, 3), collate_detection, num_workers=num_workers, pin_memory=False)
    told = error_of_first_batch(loader)
    assert told.startswith(f"{path}: not an image, or damaged (")
    assert "\n" not in told


def test_an_image_of_another_size(records, tmp_path):
    Image.new("RGB", (19, 30)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png: the image is 19x30 but its annotation says 20x30"):
        DetectionDataset(records, transforms=PLAIN, seed=0)[0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_path": "/nowhere"}, "/nowhere: no such folder"),
        ({"data_path": "/nowhere", "dataset_file": "voc"}, "/nowhere: no such folder"),
    ],
)
def test_arguments_that_do_not_do(changes, message):
    with pytest.raises(UserError, match=message):
        build(arguments(**changes), "train")


def test_unlabelled_arguments(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert len(build_unlabelled(arguments(dataset_file="imagefolder", data_path=tmp_path))) == 1
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "b.jpg").touch()
    assert len(build_unlabelled(arguments(dataset_file="coco", data_path=tmp_path))) == 1
