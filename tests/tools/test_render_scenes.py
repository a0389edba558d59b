"""Rendered scenes: repeatable, valid for pycocotools, with correct boxes and masks."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tools.render_scenes import render_data_set, run_lengths
from tools.scenes import compose
from tools.scenes.noise import fractal_noise
from tools.scenes.objects import CATEGORIES, DISTRACTORS
from util.errors import UserError


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "deep" / "data"
    render_data_set(folder, 24, 3, 2, size=128, seed=3)
    return folder


@pytest.fixture(scope="module")
def train(data_set: Path) -> COCO:
    return COCO(data_set / "annotations" / "instances_train.json")


def fingerprints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_arguments_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        render_data_set(tmp_path / name, 2, 1, 1, size=96, seed=seed)
    first, again, other = (fingerprints(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_pictures_of_one_set_differ_from_each_other_and_from_the_other_splits(data_set: Path) -> None:
    pictures = [digest for name, digest in fingerprints(data_set).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 24 + 3 + 2


def test_layout_and_sizes(data_set: Path, train: COCO) -> None:
    assert sorted(path.name for path in data_set.iterdir()) == ["annotations", "train", "unlabelled", "val"]
    assert [path.name for path in data_set.parent.iterdir()] == ["data"]  # nothing temporary is left
    shapes = set()
    for record in train.loadImgs(train.getImgIds()):
        with Image.open(data_set / "train" / record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
            assert image.format == "JPEG"
            shapes.add(image.size)
    assert {min(shape) for shape in shapes} == {128}
    assert len(shapes) >= 4


def test_all_categories_are_there(train: COCO) -> None:
    assert [c["name"] for c in train.loadCats(train.getCatIds())] == list(CATEGORIES)
    counts = Counter(a["category_id"] for a in train.anns.values())
    assert sorted(counts) == train.getCatIds()
    assert min(counts.values()) >= 4


def test_boxes_are_tight_around_the_visible_masks(train: COCO) -> None:
    """Boxes and areas as pycocotools computes them from the written run lengths."""
    assert len(train.anns) > 24
    for annotation in train.anns.values():
        encoded = train.annToRLE(annotation)
        assert coco_mask.toBbox(encoded).tolist() == annotation["bbox"]
        assert int(coco_mask.area(encoded)) == annotation["area"]
        assert min(annotation["bbox"][2:]) >= compose.MIN_VISIBLE_SIDE


def test_visible_masks_of_one_picture_do_not_overlap(train: COCO) -> None:
    for image_id in train.getImgIds():
        masks = [train.annToMask(a) for a in train.loadAnns(train.getAnnIds(image_id))]
        assert np.sum(masks, axis=0).max(initial=0) <= 1


def test_masks_show_where_the_object_changes_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repainting one object in a glowing colour changes exactly the pixels of its mask (but for soft edges)."""
    monkeypatch.setattr(compose, "NUM_OBJECTS", (5, 5))  # some hide parts of others
    monkeypatch.setattr(compose, "RADII", (0.15, 0.3))
    monkeypatch.setattr(compose, "MIN_VISIBLE_SHARE", 0.3)
    rng, shape = np.random.default_rng(3), (120, 160)
    things = compose.remove_hidden(compose._draw_things(rng, shape), shape)
    lamp = compose._draw_lamp(rng)
    owner, canvas = compose.owners(things, shape), np.full((*shape, 3), 0.3, np.float32)
    picture = compose.lay_down(canvas, things, lamp)
    edge = partly_covered(things, shape)
    chosen = [i for i, thing in enumerate(things) if thing.name]
    assert len(chosen) >= 3
    for index in chosen:
        surface = things[index].surface
        glowing = replace(things[index], surface=replace(surface, albedo=surface.albedo + 50))
        repainted = compose.lay_down(canvas, [*things[:index], glowing, *things[index + 1 :]], lamp)
        change = np.abs(repainted - picture).max(-1)
        mask = owner == index
        assert (change[mask & ~edge] > 0.5).all()
        assert (change[~mask & ~edge] < 1e-3).all()


def partly_covered(things: list[compose.Thing], shape: tuple[int, int]) -> np.ndarray:
    """Pixels [h, w] that any object covers, at least in part."""
    edge = np.zeros(shape, bool)
    for thing in things:
        picture, grid = thing.window(shape)
        edge[picture] |= (thing.cover[grid] > 0) & (thing.cover[grid] < 1)
    return edge


def block(name: str | None, left: int, top: int, wide: int, tall: int) -> compose.Thing:
    """An object that covers a whole rectangle; its texture does not matter."""
    return compose.Thing(name, surface=None, cover=np.ones((tall, wide), np.float32), left=left, top=top, radius=1.0)


def test_hidden_objects_leave_the_scene() -> None:
    """Shares by hand: 6/10, 5.9/10 hidden by a distractor, outside the picture, and too thin."""
    shape = (100, 100)
    seen = block("ball", 0, 0, 100, 10)
    hidden = block("crate", 0, 20, 100, 10)
    outside = block("mug", -41, 40, 100, 10)
    thin = block("crate", 0, 60, 20, 7)
    covers = [block(None, 60, 0, 40, 10), block(None, 59, 20, 41, 10)]
    kept = compose.remove_hidden([seen, hidden, outside, thin, *covers], shape)
    assert [thing.name for thing in kept] == ["ball", None, None]


@pytest.mark.parametrize("left", [-30, -10, 5, 95, 100, 130])
@pytest.mark.parametrize("top", [-30, 0, 95, 200])
def test_owners_agree_with_a_naive_loop_also_across_the_border(left: int, top: int) -> None:
    thing = block("ball", left, top, 30, 20)
    owner = compose.owners([thing], (100, 100))
    expected = [[0 if top <= y < top + 20 and left <= x < left + 30 else -1 for x in range(100)] for y in range(100)]
    assert owner.tolist() == expected


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(5, 3, dtype=bool)])
def test_run_lengths_decode_to_the_mask(mask: np.ndarray) -> None:
    encoded = coco_mask.frPyObjects({"size": list(mask.shape), "counts": run_lengths(mask)}, *mask.shape)
    assert (coco_mask.decode(encoded) == mask).all()


@pytest.mark.parametrize("draw", [*CATEGORIES.values(), *DISTRACTORS])
def test_every_kind_of_thing_is_finite_and_inside_its_grid(draw) -> None:
    rows, columns = np.mgrid[-1.25:1.25:80j, -1.25:1.25:80j].astype(np.float32)
    for seed in range(10):
        surface = draw(columns, rows, np.random.default_rng(seed))
        cover = compose.coverage(surface.outside)
        assert 0.02 < cover.mean() < 0.8
        assert cover[[0, -1]].max() == cover[:, [0, -1]].max() == 0
        for values in (surface.albedo, surface.height, cover):
            assert np.isfinite(values).all()


def test_colour_does_not_give_the_category_away() -> None:
    """Mean colours of the categories over many instances differ less than instances of one category do."""
    rows, columns = np.mgrid[-1:1:24j, -1:1:24j].astype(np.float32)
    colours = []
    for draw in CATEGORIES.values():
        surfaces = [draw(columns, rows, np.random.default_rng(seed)) for seed in range(60)]
        visible = [surface.albedo[surface.outside < 0].mean(0) for surface in surfaces]
        colours.append([colour / colour.sum() for colour in visible])  # the hue, free of brightness
    within = np.std(colours, axis=1).mean()
    between = np.std(np.mean(colours, axis=1), axis=0).mean()
    assert between < 0.4 * within


def test_the_ground_is_blurred_and_paler_around_its_own_colour() -> None:
    ground = np.random.default_rng(0).uniform(0.2, 0.4, (100, 120, 3)).astype(np.float32)
    soft = compose.out_of_focus(ground)
    np.testing.assert_allclose(soft.mean((0, 1)), ground.mean((0, 1)), rtol=0.01)
    assert soft.std() < 0.4 * ground.std()
    flat = np.full_like(ground, 0.3)
    np.testing.assert_allclose(compose.out_of_focus(flat), flat, rtol=1e-5)


def test_noise_stays_within_bounds_and_fills_them() -> None:
    noise = fractal_noise(np.random.default_rng(0), (60, 90), 6)
    assert noise.shape == (60, 90)
    assert noise.dtype == np.float32
    assert 0.3 < np.abs(noise).max() < 1.1
    assert abs(noise.mean()) < 0.15


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path} exists already"):
        render_data_set(tmp_path, 1, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.render_scenes.render_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_data_set(tmp_path / "data", 1, 1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("counts", "size", "flag"), [((0, 1, 1), 96, "--num_train 0"), ((1, 1, 1), 8, "--size 8")])
def test_numbers_that_are_too_small(counts: tuple[int, int, int], size: int, flag: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=flag):
        render_data_set(tmp_path / "data", *counts, size=size)
