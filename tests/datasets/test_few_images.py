"""Drawing some of the labelled images, against counts by hand and by properties."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.few_images import draw_fraction, draw_per_class
from datasets.records import DetectionRecords, RecordBuilder

CATEGORIES = [{"label": label, "id": label, "name": f"c{label}"} for label in (0, 2, 3)]


def make_records(labels_of_images: list[list[int]], crowd_label: int | None = None) -> DetectionRecords:
    """One image per list of labels; the n-th box of the data set is n pixels wide."""
    builder, width = RecordBuilder(), 1
    for number, labels in enumerate(labels_of_images):
        index = builder.add_image(f"{number}.jpg", number + 100, (500, 200 + number))
        for label in labels:
            builder.add_box(index, (0, 0, width, 5), label, crowd=label == crowd_label)
            width += 1
    return builder.pack(
        root=Path("root"), source="test", metric="coco", categories=CATEGORIES, place=lambda box, image: "somewhere"
    )


def test_selected_images_keep_their_boxes():
    records = make_records([[0], [], [2, 3], [3, 3, 0]])
    chosen = records.select(np.array([3, 1, 0]))
    assert chosen.relative_paths() == ["3.jpg", "1.jpg", "0.jpg"]
    assert chosen.image_ids.tolist() == [103, 101, 100]
    assert chosen.sizes.tolist() == [[500, 203], [500, 201], [500, 200]]
    assert chosen.offsets.tolist() == [0, 3, 3, 4]
    assert chosen.boxes[:, 2].tolist() == [4, 5, 6, 1]
    assert chosen.labels.tolist() == [3, 3, 0, 0]
    assert chosen.image_of_box().tolist() == [0, 0, 0, 2]
    assert chosen.categories == CATEGORIES


def test_only_images_with_something_to_train_on_are_drawn():
    records = make_records([[], [2], [0], [2, 2], [], [3, 2]], crowd_label=2)
    assert draw_fraction(records, 1.0, seed=0).tolist() == [2, 5]
    assert draw_per_class(records, 9, seed=0).tolist() == [2, 5]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.floats(0.001, 1.0), st.integers(0, 9))
def test_a_fraction_is_as_large_as_asked_and_grows(num_images, fraction, seed):
    records = make_records([[0]] * num_images)
    drawn = draw_fraction(records, fraction, seed)
    assert len(drawn) == max(1, round(fraction * num_images))
    assert len(np.unique(drawn)) == len(drawn)
    assert set(draw_fraction(records, fraction / 2, seed)) <= set(drawn)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 2, 3]), max_size=3), min_size=1, max_size=40), st.integers(1, 5))
def test_every_class_has_its_images(labels, count):
    drawn = draw_per_class(make_records(labels), count, seed=4)
    for label in (0, 2, 3):
        available = sum(label in own for own in labels)
        assert sum(label in labels[index] for index in drawn) >= min(count, available)
    assert len(drawn) <= 3 * count


def test_the_seed_decides():
    records = make_records([[0, 2]] * 100)
    for draw in (lambda seed: draw_fraction(records, 0.1, seed), lambda seed: draw_per_class(records, 5, seed)):
        assert draw(1).tolist() == draw(1).tolist()
        assert draw(1).tolist() != draw(2).tolist()
