"""Drawing the images to evaluate on: counts by hand, and properties."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.held_out import draw_random, draw_stratified, find_images
from datasets.records import DetectionRecords, RecordBuilder
from util.errors import DataError, UserError

CATEGORIES = [{"label": label, "id": label + 1, "name": f"c{label}"} for label in (0, 2, 3)]


def make_records(labels_of_images: list[list[int]], names: list[str] | None = None) -> DetectionRecords:
    builder = RecordBuilder()
    for number, labels in enumerate(labels_of_images):
        builder.add_image(names[number] if names else f"{number}.jpg", number, (50, 50))
        for label in labels:
            builder.add_box(number, (0, 0, 5, 5), label)
    return builder.pack(root=Path("r"), source="s", metric="coco", categories=CATEGORIES, place=lambda n, i: "p")


def shares(records: DetectionRecords, held: np.ndarray) -> dict[int, float]:
    """Class -> share of its images that is held out; -1: the images without objects."""
    shows = {label: set(records.image_of_box()[records.labels == label].tolist()) for label in (0, 2, 3)}
    shows[-1] = set(range(len(records))) - set().union(*shows.values())
    return {label: len(images & set(held.tolist())) / len(images) for label, images in shows.items() if images}


def test_every_class_has_its_share():
    """60 images of one class, 20 of another, 10 of both a third and the first, 10 of nothing: a fifth of each."""
    records = make_records([[0]] * 60 + [[2, 2]] * 20 + [[0, 3]] * 10 + [[]] * 10)
    for seed in range(5):
        held = draw_stratified(records, 0.2, seed)
        assert len(held) == 20
        assert shares(records, held) == {0: 0.2, 2: 0.2, 3: 0.2, -1: 0.2}


def test_a_rare_class_is_in_both_parts():
    """Without stratification, exactly one of four would be held out in only 41 % of the draws."""
    records = make_records([[3]] * 4 + [[0]] * 196)
    assert all(0 < shares(records, draw_stratified(records, 0.25, seed))[3] < 1 for seed in range(20))
    single = make_records([[3]] + [[0]] * 99)
    assert all(0 not in draw_stratified(single, 0.2, seed) for seed in range(20)), "what is there once is trained on"


def test_copies_of_one_photograph_stay_together():
    names = [f"p{number // 3}_jpg.rf.{number}.jpg" for number in range(60)]
    held = draw_stratified(make_records([[0]] * 60, names), 0.2, 0)
    assert len(held) == 12
    assert {index // 3 for index in held} & {index // 3 for index in range(60) if index not in held} == set()


@given(
    st.lists(st.lists(st.sampled_from([0, 2, 3]), max_size=4), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_any_set_is_split(labels, fraction, seed):
    records = make_records(labels)
    try:
        held = draw_stratified(records, fraction, seed)
    except UserError:
        return
    assert 1 <= len(held) < len(records)
    assert held.tolist() == sorted(set(held.tolist()))
    assert held.tolist() == draw_stratified(records, fraction, seed).tolist()


def test_none_is_left():
    with pytest.raises(UserError, match="of 1 image leaves none to train on"):
        draw_stratified(make_records([[0]]), 0.5, 0)
    with pytest.raises(UserError, match="of 1 image leaves none to train on"):
        draw_random(1, 0.5, 0)


def test_random_draw():
    assert len(draw_random(100, 0.25, 3)) == 25
    assert draw_random(100, 0.25, 3).tolist() == draw_random(100, 0.25, 3).tolist()
    assert draw_random(100, 0.001, 3).shape == (1,)


def test_images_are_found_by_name():
    assert find_images(["0.jpg", "1.jpg", "2.jpg"], ["2.jpg", "0.jpg"], "set").tolist() == [2, 0]
    with pytest.raises(DataError, match=r"set: the image 9\.jpg is missing"):
        find_images(["0.jpg"], ["0.jpg", "9.jpg"], "set")
