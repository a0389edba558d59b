"""Geometry of the views: properties over many sizes and seeds, hand-worked numbers, independent IoUs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm
from torchvision.ops import box_iou, nms

from datasets.pretext import view_geometry
from datasets.pretext.view_geometry import (
    ViewGeometry,
    choose_differing_regions,
    choose_regions,
    differing,
    draw_crops,
    draw_geometry,
    draw_outer_crop,
    greatest_zoom,
    jitter_corners,
    overlap_ratio,
    usable_proposals,
    widen_boxes,
)

PIXEL_NOISE = 1e-9  # float64 rounding at coordinates of some hundred pixels
seeds = st.integers(0, 2**32 - 1)
taus = st.floats(0.01, 0.99)
sides = st.integers(1, 900)
any_number = st.floats(width=32) | st.floats(-100, 700, width=32)
any_proposals = st.integers(0, 12).flatmap(lambda n: arrays(np.float32, (n, 4), elements=any_number))


def random_geometry(seed: int, size: tuple[int, int] = (500, 375), tau: float = 0.5) -> ViewGeometry:
    rng = np.random.default_rng(seed)
    return draw_geometry(rng, size, scales=range(320, 481, 16), max_size=600, view_iou=tau)


def iou(crops: np.ndarray) -> float:
    return box_iou(*torch.from_numpy(crops).unsqueeze(1)).item()


@given(seeds, st.tuples(sides, sides))
@settings(deadline=None)
def test_iou_of_a_geometry_and_what_it_shows_of_the_source(seed: int, size: tuple[int, int]) -> None:
    geometry = random_geometry(seed, size)
    assert geometry.iou == pytest.approx(iou(geometry.crops))
    back = geometry.from_source(geometry.source_crops())
    np.testing.assert_allclose(back, np.clip(geometry.crops, 0, np.tile(geometry.image_size, 2)), atol=1e-6)


@given(seeds, st.tuples(sides, sides), taus)
@settings(deadline=None)
def test_no_view_magnifies_more_than_the_greatest_zoom(seed: int, size: tuple[int, int], tau: float) -> None:
    geometry = random_geometry(seed, size, tau)
    zoom = geometry.view_size / (geometry.crops[:, 2:] - geometry.crops[:, :2])
    assert zoom.max() <= greatest_zoom(tau) * (1 + 1e-9)


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_overlap_ratio_is_the_side_at_which_the_iou_is_tau(tau: float) -> None:
    def excess(r: float) -> float:
        inner, outer = (1 - r) / 2, (1 + r) / 2
        return iou(np.array([[0, 0, outer, outer], [inner, inner, 1, 1]])) - tau

    assert overlap_ratio(tau) == pytest.approx(brentq(excess, 1e-6, 1), abs=1e-9)


def test_overlap_ratio_at_one_half_by_hand() -> None:
    # 2.5 r^2 - r - 0.5 = 0  =>  r = (1 + sqrt(1 + 5)) / 5
    assert overlap_ratio(0.5) == pytest.approx((1 + 6**0.5) / 5)


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.5, float("nan")])
def test_overlap_ratio_refuses_other_values(tau: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        overlap_ratio(tau)


@given(seeds, sides, sides, taus)
def test_views_overlap_enough_and_keep_the_aspect_ratio(seed: int, width: int, height: int, tau: float) -> None:
    geometry = random_geometry(seed, (width, height), tau)
    outer, crops = geometry.outer, geometry.crops
    assert iou(crops) >= tau - PIXEL_NOISE
    assert (crops[:, :2] >= outer[:2]).all()
    assert (crops[:, 2:] <= outer[2:]).all()
    crop_sides = crops[:, 2:] - crops[:, :2]
    outer_sides = outer[2:] - outer[:2]
    np.testing.assert_allclose(crop_sides[:, 0] * outer_sides[1], crop_sides[:, 1] * outer_sides[0], rtol=1e-9)
    common = np.concatenate([crops[:, :2].max(axis=0), crops[:, 2:].min(axis=0)])
    np.testing.assert_allclose(geometry.intersection, common, atol=PIXEL_NOISE)
    np.testing.assert_allclose(common[:2] - outer[:2], outer[2:] - common[2:], atol=1e-9)  # centred


@given(seeds, sides, sides)
def test_outer_crop_has_integer_corners_inside_and_the_area_and_aspect_allowed(seed, width: int, height: int) -> None:
    outer = draw_outer_crop(np.random.default_rng(seed), (width, height))
    assert (outer == outer.round()).all()
    assert (outer[:2] >= 0).all()
    assert (outer[2:] <= (width, height)).all()
    crop_width, crop_height = outer[2:] - outer[:2]
    assert crop_width >= 1
    assert crop_height >= 1
    # Sides are rounded to pixels, which changes the ratio by up to this much.
    assert (crop_width + 0.5) / (crop_height - 0.5) >= 3 / 4
    assert (crop_width - 0.5) / (crop_height + 0.5) <= 4 / 3
    if max(width, height) <= 1.5 * min(width, height) and min(width, height) > 20:
        assert (crop_width + 0.5) * (crop_height + 0.5) / (width * height) >= 0.5


@pytest.mark.parametrize(
    ("size", "expected"),
    [((600, 4), [297, 0, 302, 4]), ((4, 600), [0, 297, 4, 302]), ((600, 1), [299, 0, 300, 1])],
)
def test_a_strip_gets_the_largest_centred_crop(size: tuple[int, int], expected: list[int]) -> None:
    # 4 * 4/3 = 5.33 -> 5 wide: none of ten tries with at least half the strip's area fits.
    assert draw_outer_crop(np.random.default_rng(0), size).tolist() == expected


def test_outer_crop_draws_area_and_log_aspect_uniformly() -> None:
    rng = np.random.default_rng(0)
    outers = np.array([draw_outer_crop(rng, (2000, 2000)) for _ in range(4000)])
    width, height = (outers[:, 2:] - outers[:, :2]).T
    area, log_aspect = width * height / 2000**2, np.log(width / height)
    # Every area up to 3/4 fits at every aspect ratio: there, both are uniform and independent.
    fits = area <= 0.75
    assert area[fits].mean() == pytest.approx(0.625, abs=0.005)
    assert log_aspect[fits].mean() == pytest.approx(0, abs=0.02)
    assert log_aspect[fits].std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, rel=0.05)
    assert np.quantile(area, [0, 1]) == pytest.approx([0.5, 1], abs=0.03)


def test_crops_move_by_uniform_fractions_and_swap() -> None:
    rng = np.random.default_rng(0)
    outer = np.array([0.0, 0.0, 100.0, 80.0])
    crops, swapped = [], 0
    for _ in range(3000):
        pair, _ = draw_crops(rng, outer, 0.5)
        is_swapped = pair[0, 0] > pair[1, 0]
        swapped += is_swapped
        crops.append(pair[::-1] if is_swapped else pair)
    first = np.array(crops)[:, 0, 0] / ((1 - overlap_ratio(0.5)) / 2 * 100)
    second = (100 - np.array(crops)[:, 1, 2]) / ((1 - overlap_ratio(0.5)) / 2 * 100)
    for fractions in (first, second):
        np.testing.assert_allclose(
            np.quantile(fractions, [0.0, 0.25, 0.5, 0.75, 1.0]), [0, 0.25, 0.5, 0.75, 1], atol=0.03
        )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert swapped / 3000 == pytest.approx(0.5, abs=0.04)


def test_flip_scale_and_short_sides_are_drawn() -> None:
    drawn = [random_geometry(seed) for seed in range(400)]
    assert {min(geometry.image_size) for geometry in drawn} == set(range(320, 481, 16)) - {464, 480} | {450}
    assert max(geometry.image_size[0] for geometry in drawn) == 600  # with 464 and 480 it would exceed 600
    assert np.mean([geometry.flip for geometry in drawn]) == pytest.approx(0.5, abs=0.1)


def test_source_boxes_scale_then_flip_by_hand() -> None:
    unflipped = ViewGeometry(
        source_size=(50, 40), image_size=(100, 80), flip=False, outer=np.array([0.0, 0, 100, 80]),
        crops=np.array([[0.0, 0, 100, 80]] * 2), intersection=np.array([0.0, 0, 100, 80]),
    )  # fmt: skip
    boxes = np.array([[5.0, 10, 20, 30]])
    assert unflipped.from_source(boxes).tolist() == [[10, 20, 40, 60]]
    flipped = ViewGeometry(**(vars(unflipped) | {"flip": True}))
    assert flipped.from_source(boxes).tolist() == [[60, 20, 90, 60]]
    assert boxes.tolist() == [[5, 10, 20, 30]]


@given(seeds, sides, sides, taus, any_proposals, st.integers(1, 12))
@settings(max_examples=300)
def test_regions_of_both_views_are_one_rectangle_of_the_image(
    seed: int, width: int, height: int, tau: float, proposals: np.ndarray, num_regions: int
) -> None:
    geometry = random_geometry(seed, (width, height), tau)
    proposals = geometry.from_source(proposals.astype(np.float64))
    regions = choose_regions(np.random.default_rng(seed), geometry.intersection, proposals, num_regions)
    assert regions.shape == (num_regions, 4)
    np.testing.assert_allclose(regions[0], geometry.intersection, atol=PIXEL_NOISE)
    assert (regions[:, 2:] - regions[:, :2] >= 1 - PIXEL_NOISE).all()

    boxes = geometry.to_views(regions).astype(np.float32)
    view_width, view_height = geometry.view_size
    assert (boxes >= 0).all()
    assert (boxes[..., [0, 2]] <= view_width).all()
    assert (boxes[..., [1, 3]] <= view_height).all()
    assert (boxes[..., 2:] - boxes[..., :2] >= 1 - 1e-4).all()
    for crop, view_boxes in zip(geometry.crops, boxes.astype(np.float64), strict=True):
        in_image = np.empty_like(regions)
        in_image[:, [0, 2]] = crop[0] + view_boxes[:, [0, 2]] / view_width * (crop[2] - crop[0])
        in_image[:, [1, 3]] = crop[1] + view_boxes[:, [1, 3]] / view_height * (crop[3] - crop[1])
        np.testing.assert_allclose(in_image, regions, atol=1e-3)  # half a pixel would be enough


WITHIN = np.array([10.0, 20, 110, 70])  # 100 x 50: boxes need an area of 250


def test_regions_by_hand() -> None:
    proposals = np.array(
        [
            [200.0, 200, 300, 300],  # outside
            [0, 0, 35, 30],  # 25 x 10 inside: exactly a twentieth, kept
            [50, 30, 70, 42.4],  # 20 x 12.4 = 248: too small
            [60, 60, 40, 40],  # corners exchanged
            [np.nan, 30, 60, 60],
            [-np.inf, -np.inf, np.inf, np.inf],
            [20, 30, 20, 60],  # no width
            [40, 25, 90, 65],  # kept
            [0, 0, 500, 500],  # kept, as the whole intersection
        ]
    )
    kept = [[10, 20, 35, 30], [40, 25, 90, 65], [10, 20, 110, 70]]
    assert usable_proposals(proposals, WITHIN).tolist() == kept
    regions = choose_regions(np.random.default_rng(0), WITHIN, proposals, 3)
    assert regions.tolist() == [WITHIN.tolist(), *kept[:2]]


def test_too_few_proposals_are_repeated_in_turn_with_moved_corners() -> None:
    kept = np.array([[40.0, 25, 60, 65], [50, 30, 90, 60]])
    regions = choose_regions(np.random.default_rng(0), WITHIN, kept, 8)
    np.testing.assert_array_equal(regions[1:3], kept)
    repeated = regions[3:].reshape(5, 2, 2)
    original = kept[[0, 1, 0, 1, 0]].reshape(5, 2, 2)
    moved = np.abs(repeated - original) / (original[:, 1:] - original[:, :1])
    assert (moved <= 0.1).all()
    assert (moved > 0).all()
    assert len(np.unique(regions, axis=0)) == 8


def test_jitter_has_the_distribution_of_two_sigmoids_minus_one() -> None:
    boxes = np.tile(np.array([0.0, 0, 10, 20]), (20000, 1))
    offsets = (jitter_corners(np.random.default_rng(0), boxes) - boxes) / [10, 20, 10, 20]
    variance, _ = quad(lambda n: (0.1 * (2 / (1 + np.exp(-n)) - 1)) ** 2 * norm.pdf(n), -10, 10)
    np.testing.assert_allclose(offsets.std(axis=0), variance**0.5, rtol=0.03)
    np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=0.001)


def test_random_boxes_stand_in_where_no_proposal_is_usable() -> None:
    regions = choose_regions(np.random.default_rng(0), WITHIN, np.array([[200.0, 200, 300, 300]]), 10)
    assert regions[0].tolist() == WITHIN.tolist()
    areas = (regions[:, 2:] - regions[:, :2]).prod(axis=1)
    assert (areas >= 250).all()
    assert len(np.unique(regions, axis=0)) == 10


def test_thin_boxes_are_widened_to_a_pixel_inside() -> None:
    boxes = np.array([[10.0, 20, 10.2, 70], [50, 44.9, 60, 45.1], [110, 70, 110, 70], [20, 30, 40, 50]])
    expected = [[10, 20, 11, 70], [50, 44.5, 60, 45.5], [109, 69, 110, 70], [20, 30, 40, 50]]
    np.testing.assert_allclose(widen_boxes(boxes, WITHIN), expected)


def test_constants_are_those_of_the_paper() -> None:
    assert view_geometry.OUTER_AREA == (0.5, 1.0)
    assert view_geometry.OUTER_ASPECT == (3 / 4, 4 / 3)
    assert view_geometry.REPEAT_JITTER == 0.1


@given(seeds, st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_differing_boxes_are_those_of_torchvisions_suppression(seed: int, max_iou: float) -> None:
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 50, (40, 2)), rng.uniform(5, 60, (40, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    kept = nms(torch.from_numpy(boxes), torch.arange(40, 0, -1, dtype=torch.float64), max_iou)
    assert differing(boxes, max_iou) == kept.tolist()


@given(seeds, any_proposals)
@settings(max_examples=50, deadline=None)
def test_chosen_regions_differ_and_lie_in_the_intersection(seed: int, proposals: np.ndarray) -> None:
    within = np.array([20.0, 30.0, 300.0, 200.0])
    regions = choose_differing_regions(np.random.default_rng(seed), within, proposals, 6, 0.5)
    assert regions.shape == (6, 4)
    assert (regions[0] == within).all()
    assert (regions[:, :2] >= within[:2]).all()
    assert (regions[:, 2:] <= within[2:]).all()
    iou = box_iou(torch.from_numpy(regions), torch.from_numpy(regions)).numpy()
    assert (iou - np.eye(6)).max() < 0.5 + 1e-6  # sixty random boxes always hold five that differ


def test_the_best_proposals_are_kept_and_near_copies_give_way() -> None:
    within = np.array([0.0, 0.0, 100.0, 100.0])
    best, copy, other = [0, 0, 40, 40], [2, 2, 41, 41], [50, 50, 100, 90]
    regions = choose_differing_regions(np.random.default_rng(0), within, np.array([best, copy, other]), 3, 0.5)
    assert regions.tolist() == [within.tolist(), best, other]
    copies = choose_differing_regions(np.random.default_rng(0), within, np.array([best]), 200, 0.5)
    assert len(copies) == 200, "repeats fill what random boxes do not"
