"""Images and boxes move together."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import transforms
from datasets.pixels.photometric import Photometric
from datasets.transforms import (
    AUGMENTATIONS,
    Compose,
    RandomColours,
    RandomHorizontalFlip,
    RandomResize,
    RandomSelect,
    RandomSizeCrop,
    ToTensor,
    detection_eval_transforms,
    detection_train_transforms,
    resized_size,
)
from tests.util.test_args import finetune

PLANTED = (255, 0, 0)


def target_of(*boxes):
    return {"boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4), "labels": np.arange(len(boxes)), "image_id": 7}


def planted_scene(width, height, box):
    """Grey noise with one rectangle of a colour that occurs nowhere else."""
    grey = np.random.default_rng(0).integers(0, 100, (height, width, 1), dtype=np.uint8).repeat(3, axis=2)
    x0, y0, x1, y1 = box
    grey[y0:y1, x0:x1] = PLANTED
    return Image.fromarray(grey), target_of(box)


def found_box(array):
    """xyxy of the planted colour in [H, W, 3] with values up to 255, or None."""
    red = array[..., 0].astype(float) - array[..., 1:].max(axis=2) > 127
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) if len(rows) else None


@st.composite
def scenes(draw):
    width, height = draw(st.integers(40, 120)), draw(st.integers(40, 120))
    x0, y0 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
    x1, y1 = draw(st.integers(x0 + 12, width)), draw(st.integers(y0 + 12, height))
    return planted_scene(width, height, (x0, y0, x1, y1))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_flip_by_hand():
    image = Image.fromarray(np.array([[[1, 1, 1], [2, 2, 2], [3, 3, 3]]], dtype=np.uint8))
    flipped, target = RandomHorizontalFlip(p=1)(image, target_of([0, 0, 1, 1], [0.5, 0, 3, 1]), rng())
    assert np.asarray(flipped)[0, :, 0].tolist() == [3, 2, 1]
    assert target["boxes"].tolist() == [[2, 0, 3, 1], [0, 0, 2.5, 1]]
    assert target["image_id"] == 7


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((640, 480), 800, 1333, (1066, 800)),  # 640 * 800 / 480 = 1066.67
        ((480, 640), 800, 1333, (800, 1066)),
        ((500, 500), 320, 600, (320, 320)),
        ((1000, 400), 800, 1333, (1332, 533)),  # 2.5 * 800 > 1333: 1333 / 2.5 = 533.2; 533 * 2.5 = 1332.5
        ((640, 480), 480, 1333, (640, 480)),
        ((1000, 400), 800, None, (2000, 800)),
        ((1, 10000), 800, 1333, (1, 1333)),
        ((1250, 100), 800, 1333, (1333, 107)),  # 106.64 -> 107, 107 * 12.5 = 1337 in DETR
    ],
)
def test_resized_size_by_hand(size, short_side, max_size, expected):
    assert resized_size(size, short_side, max_size) == expected


def sizes_of_detr(size, short_side, max_size):
    """DETR's get_size_with_aspect_ratio, -> (width, height)."""
    w, h = size
    low, high = float(min(w, h)), float(max(w, h))
    if high / low * short_side > max_size:
        short_side = round(max_size * low / high)
    if (w <= h and w == short_side) or (h <= w and h == short_side):
        return w, h
    if w < h:
        return short_side, int(short_side * h / w)
    return int(short_side * w / h), short_side


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 900), st.integers(900, 1400))
def test_resized_size_is_that_of_detr(width, height, short_side, max_size):
    size = resized_size((width, height), short_side, max_size)
    assert min(size) >= 1
    assert max(size) <= max_size
    if max(width, height) <= 10 * min(width, height):  # for larger ratios, a side may become 0 in DETR
        assert size == tuple(min(side, max_size) for side in sizes_of_detr((width, height), short_side, max_size))


def test_resize_by_hand():
    image, target = planted_scene(100, 50, (10, 20, 30, 40))
    resized, target = RandomResize([25])(image, target, rng())
    assert resized.size == (50, 25)
    assert target["boxes"].tolist() == [[5, 10, 15, 20]]


def test_crop_by_hand():
    image = Image.new("RGB", (10, 10))
    boxes = target_of([0, 0, 10, 10], [0, 0, 10, 1], [9, 9, 10, 10])
    kept = set()
    for seed in range(200):
        _, target = RandomSizeCrop(4, 4)(image, boxes, rng(seed))
        assert target["boxes"][0].tolist() == [0, 0, 4, 4]
        assert target["labels"].dtype == np.int64
        kept.add(tuple(target["labels"].tolist()))
    assert kept == {(0,), (0, 1), (0, 2)}, "the top row and the last pixel are never in one crop of 4 of 10 rows"


def test_crop_covers_all_positions_and_sizes_evenly():
    position = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(position).convert("RGB")
    seen = set()
    for seed in range(600):
        cropped, _ = RandomSizeCrop(5, 20)(image, target_of(), rng(seed))
        top, left = divmod(int(np.asarray(cropped)[0, 0, 0]), 8)
        seen.add((cropped.width, left))
        np.testing.assert_array_equal(
            np.asarray(cropped)[..., 0], position[top : top + cropped.height, left : left + cropped.width]
        )
    assert seen == {(width, left) for width in (5, 6, 7, 8) for left in range(9 - width)}


def test_crop_of_an_image_smaller_than_the_crop():
    cropped, target = RandomSizeCrop(20, 30)(Image.new("RGB", (10, 25)), target_of([0, 0, 10, 25]), rng())
    assert cropped.width == 10
    assert target["boxes"][0].tolist() == [0, 0, 10, cropped.height]


def test_select():
    chosen = [
        RandomSelect(lambda *_: ("first", {}), lambda *_: ("second", {}), p=0.25)(None, {}, rng(seed))[0]
        for seed in range(2000)
    ]
    assert chosen.count("first") == pytest.approx(500, abs=80)  # 4 standard deviations of the binomial


def test_to_tensor_by_hand():
    image = Image.fromarray(np.array([[[0, 51, 255]] * 4] * 2, dtype=np.uint8))
    tensor, target = ToTensor([0.5, 0.2, 0.0], [0.5, 1.0, 0.25])(image, target_of([1, 0, 4, 1]), rng())
    assert tensor.shape == (3, 2, 4)
    torch.testing.assert_close(tensor[:, 1, 3], torch.tensor([-1.0, 0.0, 4.0]))
    assert target["boxes"].tolist() == [[0.625, 0.25, 0.75, 0.5]]
    assert target["size"].tolist() == [2, 4]
    assert {name: value.dtype for name, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "image_id": torch.int64,
        "size": torch.int64,
    }


TRANSFORMS = {
    "flip": RandomHorizontalFlip(p=0.5),
    "resize": RandomResize([30, 70, 200], max_size=250),
    "crop": RandomSizeCrop(20, 60),
    "all": Compose([RandomHorizontalFlip(), RandomResize([90, 150]), RandomSizeCrop(60, 80), RandomResize([60, 96])]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=100, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32))
def test_boxes_follow_the_pixels(name, scene, seed):
    image, target = TRANSFORMS[name](*scene, rng(seed))
    found = found_box(np.asarray(image))
    if len(target["boxes"]) == 0:
        assert found is None
        assert len(target["labels"]) == 0
        return
    box = target["boxes"][0]
    assert (box[:2] >= 0).all()
    assert (box[2:] <= np.add(image.size, 1e-4)).all()
    if name in ("flip", "crop"):
        np.testing.assert_array_equal(found, box)
    elif (box[2:] - box[:2]).min() > 4:  # thinner ones may blur away
        # Where resampling blurs a border over two pixels the threshold finds it within about one.
        np.testing.assert_allclose(found, box, atol=1.5)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@settings(max_examples=50, deadline=None)
@given(scene=scenes(), seed=st.integers(0, 2**32))
def test_training_transforms_end_to_end(augment, scene, seed):
    transform = detection_train_transforms([64, 80, 96], 140, [0.0] * 3, [1.0] * 3, augment)
    with pytest.MonkeyPatch.context() as patch:  # the planted colour must be found again
        patch.setattr(transforms, "draw_photometric", lambda rng: Photometric(jitter=(), grey=False, sigma=None))
        tensor, target = transform(*scene, rng(seed))
    _, height, width = tensor.shape
    assert target["size"].tolist() == [height, width]
    assert max(height, width) <= 140
    assert min(height, width) <= 96
    found = found_box(tensor.permute(1, 2, 0).numpy() * 255)
    if len(target["boxes"]) == 0:
        assert found is None
        return
    cx, cy, w, h = (target["boxes"][0] * torch.tensor([width, height, width, height])).tolist()
    if min(w, h) > 4:
        np.testing.assert_allclose(found, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], atol=1.5)


def test_strong_changes_sizes_and_colours():
    """Short sides go from half the smallest scale to the largest."""
    image, target = planted_scene(100, 80, (10, 20, 30, 40))
    transform = detection_train_transforms([64, 96], 140, [0.0] * 3, [1.0] * 3, "strong")
    shorts = [min(transform(image, target, rng(seed))[0].shape[1:]) for seed in range(60)]
    assert min(shorts) == 32
    assert max(shorts) == 96
    changed = [RandomColours()(image, target, rng(seed))[0] for seed in range(20)]
    assert sum(np.array_equal(one, image) for one in changed) < 5
    assert all(one.size == image.size for one in changed)


def test_no_augmentation_is_the_evaluation():
    image, target = planted_scene(100, 80, (10, 20, 30, 40))
    trained, _ = detection_train_transforms([64, 96], 140, [0.5] * 3, [0.5] * 3, "none")(image, target, rng())
    evaluated, _ = detection_eval_transforms(96, 140, [0.5] * 3, [0.5] * 3)(image, target, rng())
    assert torch.equal(trained, evaluated)


def test_the_command_line_knows_all_augmentations():
    for name in AUGMENTATIONS:
        assert finetune("--augment", name).augment == name


def test_crop_branch_scales_along():
    full = detection_train_transforms([480, 800], 1333, [0.0] * 3, [1.0] * 3).transforms[1].second
    half = detection_train_transforms([240, 400], 666, [0.0] * 3, [1.0] * 3).transforms[1].second
    assert full.transforms[0].scales == [400, 500, 600]
    assert half.transforms[0].scales == [200, 250, 300]
    assert (full.transforms[1].min_size, full.transforms[1].max_size) == (384, 600)
    assert (half.transforms[1].min_size, half.transforms[1].max_size) == (192, 300)


def test_evaluation_is_not_random():
    image, target = planted_scene(100, 80, (10, 20, 30, 40))
    transform = detection_eval_transforms(160, 400, [0.5] * 3, [0.5] * 3)
    first, first_target = transform(image, target, rng(1))
    second, _ = transform(image, target, rng(2))
    assert first.shape == (3, 160, 200)
    assert torch.equal(first, second)
    torch.testing.assert_close(first_target["boxes"], torch.tensor([[0.2, 0.375, 0.2, 0.25]]))


def test_same_generator_same_sample_and_inputs_untouched():
    image, target = planted_scene(100, 80, (10, 20, 30, 40))
    transform = detection_train_transforms([64, 80, 96], 140, [0.5] * 3, [0.5] * 3)
    before = np.asarray(image).copy(), target["boxes"].copy()
    global_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    samples = [transform(image, target, rng(seed)) for seed in (5, 5, 6)]
    assert torch.equal(samples[0][0], samples[1][0])
    assert torch.equal(samples[0][1]["boxes"], samples[1][1]["boxes"])
    assert samples[0][0].shape != samples[2][0].shape or not torch.equal(samples[0][0], samples[2][0])
    np.testing.assert_array_equal(np.asarray(image), before[0])
    np.testing.assert_array_equal(target["boxes"], before[1])
    assert torch.equal(torch.get_rng_state(), global_states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], global_states[1])  # noqa: NPY002
    assert random.getstate() == global_states[2]


def test_no_boxes():
    tensor, target = detection_train_transforms([32], 64, [0.5] * 3, [0.5] * 3)(
        Image.new("RGB", (50, 40)), target_of(), rng()
    )
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64
    assert tensor.shape[1] >= 32
