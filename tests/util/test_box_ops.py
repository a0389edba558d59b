"""Boxes against torchvision, by hand, and where they degenerate."""

import pytest
import torch
import torchvision.ops as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from util.box_ops import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    intersection_and_union,
)


def random_xyxy(*shape):
    corner = torch.rand(*shape, 2)
    return torch.cat([corner, corner + 0.01 + torch.rand(*shape, 2)], dim=-1)


def test_conversions_equal_torchvision_and_undo_each_other():
    boxes = random_xyxy(50)
    centred = box_xyxy_to_cxcywh(boxes)
    torch.testing.assert_close(centred, reference.box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(box_cxcywh_to_xyxy(centred), boxes)


def test_conversion_by_hand():
    assert box_cxcywh_to_xyxy(torch.tensor([5.0, 6.0, 4.0, 2.0])).tolist() == [3, 5, 7, 7]
    assert box_xyxy_to_cxcywh(torch.tensor([3.0, 5.0, 7.0, 7.0])).tolist() == [5, 6, 4, 2]


def test_all_pairs_equal_torchvision():
    first, second = random_xyxy(20), random_xyxy(30)
    pairs = first[:, None], second[None]
    torch.testing.assert_close(box_area(first), reference.box_area(first))
    torch.testing.assert_close(box_iou(*pairs), reference.box_iou(first, second))
    torch.testing.assert_close(generalized_box_iou(*pairs), reference.generalized_box_iou(first, second))


def test_elementwise_is_the_diagonal_of_all_pairs():
    first, second = random_xyxy(2, 3, 10), random_xyxy(2, 3, 10)
    for function in (box_iou, generalized_box_iou):
        pairs = function(first[..., :, None, :], second[..., None, :, :])
        torch.testing.assert_close(function(first, second), pairs.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize(
    ("other", "intersection", "union", "giou"),
    [
        ([0, 0, 2, 2], 4, 4, 1.0),  # the same
        ([1, 1, 3, 3], 1, 7, 1 / 7 - 2 / 9),  # a hull of 9, 2 of it in neither
        ([2, 0, 4, 2], 0, 8, 0.0),  # side by side: the hull is full
        ([4, 4, 6, 6], 0, 8, -28 / 36),  # apart: 28 of the hull's 36 empty
        ([0.5, 0.5, 1.5, 1.5], 1, 4, 1 / 4),  # inside
    ],
)
def test_overlaps_by_hand(other, intersection, union, giou):
    box, other = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor(other, dtype=torch.float32)
    assert [value.item() for value in intersection_and_union(box, other)] == [intersection, union]
    assert box_iou(box, other).item() == pytest.approx(intersection / union)
    assert generalized_box_iou(box, other).item() == pytest.approx(giou)
    assert generalized_box_iou(other, box).item() == pytest.approx(giou)


@pytest.mark.parametrize(
    ("box", "other", "iou", "giou"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], 0, 0),  # two points in one place: no hull
        ([0, 0, 0, 0], [2, 2, 2, 2], 0, -1),  # two points apart: all of the hull is empty
        ([1, 1, 1, 1], [0, 0, 2, 2], 0, 0),  # a point inside a box: the hull is the box
    ],
)
def test_empty_boxes_have_finite_overlaps_and_gradients(box, other, iou, giou):
    box = torch.tensor(box, dtype=torch.float32, requires_grad=True)
    other = torch.tensor(other, dtype=torch.float32)
    overlap, generalized = box_iou(box, other), generalized_box_iou(box, other)
    assert overlap.item() == iou
    assert generalized.item() == giou
    (overlap + generalized).backward()
    assert torch.isfinite(box.grad).all()


def test_negative_sides_count_as_zero():
    assert box_area(torch.tensor([[3.0, 0.0, 1.0, 5.0], [3.0, 5.0, 1.0, 0.0]])).tolist() == [0, 0]


coordinates = arrays("float32", (2, 4), elements=st.floats(0, 1, width=32))


@given(coordinates)
def test_bounds_and_symmetry(values):
    boxes = torch.from_numpy(values)
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    iou, giou = box_iou(boxes[0], boxes[1]), generalized_box_iou(boxes[0], boxes[1])
    assert 0 <= iou <= 1 + 1e-6
    assert -1 - 1e-6 <= giou <= iou + 1e-6
    torch.testing.assert_close(giou, generalized_box_iou(boxes[1], boxes[0]))
