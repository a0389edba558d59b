"""Whole samples: pixels against the coordinates that they must show, any proposals, determinism, batches."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from datasets.loader import EpochBatchSampler, make_loader
from datasets.pixels.photometric import Normalisation, Photometric
from datasets.pretext import two_view
from datasets.pretext.two_view import TwoViewDataset, TwoViewTransform, collate_two_view
from tests.datasets.loading import error_of_first_batch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NONE = np.empty((0, 4), dtype=np.float32)
UNCHANGED = Photometric((), False, None)


def make_transform(**changes) -> TwoViewTransform:
    options = {
        "scales": [96, 128, 160], "max_size": 220, "num_regions": 5, "crop_size": 24, "view_iou": 0.5,
        "mean": MEAN, "std": STD,
    }  # fmt: skip
    return TwoViewTransform(**(options | changes))


@pytest.fixture
def _true_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without the photometric part, so that colours can be compared."""
    monkeypatch.setattr(two_view, "draw_photometric", lambda rng: UNCHANGED)


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column, green the row: the colour of a pixel says where it comes from."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 7)], axis=-1).astype(np.uint8))


def as_rows(pixels: torch.Tensor) -> np.ndarray:
    """A view or crop [3, h, w] as [h, w, 3] float64."""
    return pixels.permute(1, 2, 0).numpy().astype(float)


def source_of(geometry, view: int, points: np.ndarray) -> np.ndarray:
    """Points [..., 2] in pixels of a view -> in pixels of the unflipped source, by plain proportions."""
    crop = geometry.crops[view]
    in_image = crop[:2] + points / geometry.view_size * (crop[2:] - crop[:2])
    if geometry.flip:
        in_image[..., 0] = geometry.image_size[0] - in_image[..., 0]
    return in_image * geometry.source_size / geometry.image_size


def grid(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixel centres [height, width, 2] of a width x height picture of ``box``."""
    x = box[0] + (np.arange(width) + 0.5) / width * (box[2] - box[0])
    y = box[1] + (np.arange(height) + 0.5) / height * (box[3] - box[1])
    return np.stack(np.meshgrid(x, y), axis=-1)


@pytest.mark.usefixtures("_true_colours")
@pytest.mark.parametrize("seed", range(12))
def test_pixels_of_views_and_crops_show_the_place_their_boxes_say(seed: int) -> None:
    sample = make_transform()(ramp(240, 180), NONE, np.random.default_rng(seed))
    height, width = sample.size.tolist()
    for view in range(2):
        where = source_of(sample.geometry, view, grid(np.array([0, 0, width, height]), width, height))
        inner = (slice(4, -4),) * 2  # at the border of the picture a filter has no neighbours to average
        error = as_rows(sample.views[view])[inner][..., :2] - (where - 0.5)[inner]
        assert np.abs(error).max() < 0.6  # half a step of the colour is rounding
        for box, crop in zip(sample.boxes[view].double().numpy(), sample.crops[view], strict=True):
            where = source_of(sample.geometry, view, grid(box, 24, 24))
            error = as_rows(crop)[inner][..., :2] - (where - 0.5)[inner]
            assert np.abs(error).max() < 1.2  # rounded twice


@pytest.mark.usefixtures("_true_colours")
def test_crops_of_proposals_show_their_colours_in_both_views() -> None:
    colours = [(250, 20, 20), (20, 250, 20), (20, 20, 250)]
    proposals = np.array([[70, 40, 118, 88], [122, 40, 170, 88], [96, 92, 144, 142]], dtype=np.float32)
    image = Image.new("RGB", (240, 180), (128, 128, 128))
    for box, colour in zip(proposals.astype(int).tolist(), colours, strict=True):
        image.paste(colour, tuple(box))
    transform = make_transform(num_regions=4, view_iou=0.9)  # large overlap, so that no rectangle is cut
    flips = []
    for seed in range(30):
        sample = transform(image, proposals, np.random.default_rng(seed))
        common, placed = sample.geometry.intersection, sample.geometry.from_source(proposals.astype(np.float64))
        if (placed[:, :2] < common[:2]).any() or (placed[:, 2:] > common[2:]).any():
            continue
        flips.append(sample.geometry.flip)
        for view_crops in sample.crops:
            for crop, colour in zip(view_crops[1:], colours, strict=True):
                np.testing.assert_allclose(as_rows(crop)[3:-3, 3:-3], np.broadcast_to(colour, (18, 18, 3)), atol=2)
    assert sorted(set(flips)) == [False, True]
    assert len(flips) >= 8


garbage = st.integers(0, 6).flatmap(
    lambda n: arrays(np.float32, (n, 4), elements=st.floats(width=32) | st.floats(-50, 300, width=32))
)


@given(garbage, st.integers(0, 1000), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_any_proposals_and_any_size_make_a_sample(proposals: np.ndarray, seed: int, width: int, height: int) -> None:
    transform = make_transform(scales=[32, 48], max_size=64, crop_size=8)
    check_sample(transform(ramp(width, height), proposals, np.random.default_rng(seed)), 5, 8)


def check_sample(sample: two_view.TwoViewSample, num_regions: int, crop_size: int) -> None:
    height, width = sample.size.tolist()
    assert sample.views.shape == (2, 3, height, width)
    assert sample.boxes.shape == (2, num_regions, 4)
    assert sample.crops.shape == (2, num_regions, 3, crop_size, crop_size)
    assert sample.views.dtype == sample.crops.dtype == torch.uint8
    assert sample.boxes.dtype == torch.float32
    assert sample.boxes.isfinite().all()
    assert sample.size.dtype == torch.int64
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= torch.tensor([width, height, width, height])).all()
    assert (sample.boxes[..., 2:] - sample.boxes[..., :2] >= 1 - 1e-4).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (1, 2000), (2, 1)])
def test_tiny_images_and_strips(size: tuple[int, int]) -> None:
    transform = make_transform(scales=[320], max_size=600)
    for seed in range(5):
        check_sample(transform(ramp(*size), NONE, np.random.default_rng(seed)), 5, 24)


def test_every_view_and_crop_draws_its_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(rng: np.random.Generator) -> Photometric:
        drawn.append(two_view_draw(rng))
        return drawn[-1]

    two_view_draw = two_view.draw_photometric
    monkeypatch.setattr(two_view, "draw_photometric", record)
    rng = np.random.default_rng(1)
    for _ in range(4):
        make_transform()(ramp(200, 150), NONE, rng)
    assert len(drawn) == 4 * (2 + 2 * 5)
    jittered = [photometric.jitter for photometric in drawn if photometric.jitter]
    assert len(set(jittered)) == len(jittered) > 20


def test_crops_are_cut_before_the_colours_of_the_view_change(monkeypatch: pytest.MonkeyPatch) -> None:
    black = Photometric((("brightness", 0.0),), False, None)
    order = iter([black, black, *[UNCHANGED] * 10])
    monkeypatch.setattr(two_view, "draw_photometric", lambda rng: next(order))
    sample = make_transform()(Image.new("RGB", (200, 150), (90, 60, 30)), NONE, np.random.default_rng(0))
    assert (sample.views[0] == 0).all()
    assert (as_rows(sample.crops.flatten(0, 1)[3]) == [90, 60, 30]).all()


@dataclass
class Files:
    """Images and proposals for the data set, from lists."""

    paths: list[Path]
    regions: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return self.paths[index]

    def boxes(self, index: int) -> np.ndarray:
        return self.regions


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for index, size in enumerate([(90, 70), (70, 100), (120, 60), (64, 64)]):
        ramp(*size).save(tmp_path / f"{index}.png")
    return Files(sorted(tmp_path.glob("*.png")), np.array([[20, 20, 50, 50]], dtype=np.float32))


def equal(first: two_view.TwoViewSample, second: two_view.TwoViewSample) -> bool:
    names = ("views", "boxes", "size", "crops")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize("with_proposals", [False, True])
def test_sample_depends_on_seed_epoch_and_index_alone(files: Files, with_proposals: bool) -> None:
    proposals = files if with_proposals else None
    dataset = TwoViewDataset(files, proposals, make_transform(), seed=1)
    sample = dataset[(2, 1)]
    global_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for key in [(0, 0), (2, 0), (5, 3)]:
        dataset[key]
    assert equal(dataset[(2, 1)], sample)
    assert not equal(dataset[(3, 1)], sample)
    assert not equal(TwoViewDataset(files, proposals, make_transform(), seed=2)[(2, 1)], sample)
    assert torch.equal(torch.get_rng_state(), global_states[0])
    assert random.getstate() == global_states[1]
    assert (np.random.get_state()[1] == global_states[2]).all()  # noqa: NPY002


def test_proposals_of_the_store_become_regions(files: Files) -> None:
    # A proposal around everything is the intersection itself: regions 0 and 1 agree.
    everything = Files(files.paths, np.array([[0, 0, 200, 200]], dtype=np.float32))
    sample = TwoViewDataset(files, everything, make_transform(), seed=0)[(0, 0)]
    torch.testing.assert_close(sample.boxes[:, 1], sample.boxes[:, 0])
    assert not torch.allclose(sample.boxes[:, 2], sample.boxes[:, 0])


def test_batch_pads_right_and_below_and_masks_it(files: Files) -> None:
    dataset = TwoViewDataset(files, None, make_transform(), seed=0)
    samples = [dataset[(0, index)] for index in range(4)]
    sent = collate_two_view(samples)
    assert sent.batch.views.dtype == sent.batch.crops.dtype == torch.uint8
    assert len(sent) == 4
    batch, normalise = sent.to("cpu"), Normalisation(MEAN, STD)
    height, width = torch.stack([sample.size for sample in samples]).amax(dim=0).tolist()
    assert batch.views.shape == (4, 2, 3, height, width)
    assert batch.mask.shape == (4, 2, height, width)
    assert batch.boxes.shape == (4, 2, 5, 4)
    assert batch.size.shape == (4, 2)
    assert batch.crops.shape == (4, 2, 5, 3, 24, 24)
    assert len(batch) == 4
    for i, sample in enumerate(samples):
        h, w = sample.size.tolist()
        assert torch.equal(batch.views[i, :, :, :h, :w], normalise(sample.views))
        expected = torch.ones(2, height, width, dtype=torch.bool)
        expected[:, :h, :w] = False
        assert torch.equal(batch.mask[i], expected)
        assert (batch.views[i].transpose(0, 1)[:, expected] == 0).all()
        assert torch.equal(batch.boxes[i], sample.boxes)
        assert torch.equal(batch.size[i], sample.size)
        assert torch.equal(batch.crops[i], normalise(sample.crops))


def test_batch_moves(files: Files) -> None:
    batch = collate_two_view([TwoViewDataset(files, None, make_transform(), seed=0)[(0, 0)]])
    moved = batch.to("meta", non_blocking=True)
    assert {name: value.shape for name, value in vars(moved).items()} == {
        name: value.shape for name, value in vars(batch.batch).items()
    }
    assert all(value.device.type == "meta" for value in vars(moved).values())


def test_workers_make_the_same_batches(files: Files) -> None:
    dataset = TwoViewDataset(files, files, make_transform(), seed=0)
    batches = [
        list(make_loader(dataset, EpochBatchSampler(4, 2, seed=0), collate_two_view, num_workers=n, pin_memory=False))
        for n in (0, 2)
    ]
    assert len(batches[0]) == 2
    for alone, by_worker in zip(*batches, strict=True):
        assert all(torch.equal(value, vars(by_worker.batch)[name]) for name, value in vars(alone.batch).items())


def test_broken_file_is_named_in_one_line_from_a_worker(files: Files) -> None:
    files.paths[2].write_bytes(b"not an image")
    dataset = TwoViewDataset(files, None, make_transform(), seed=0)
    loader = make_loader(dataset, EpochBatchSampler(4, 4, seed=0), collate_two_view, num_workers=1, pin_memory=False)
    assert error_of_first_batch(loader).startswith(f"{files.paths[2]}: ")


@pytest.mark.parametrize("view_iou", [0.3, 0.5, 0.7])
def test_real_photographs(real_data: Path, view_iou: float) -> None:
    paths = sorted((real_data / "photos" / "train").glob("*/*.JPEG"))[::150]
    assert paths
    transform = make_transform(scales=range(320, 481, 16), max_size=600, num_regions=10, view_iou=view_iou)
    dataset = TwoViewDataset(Files(paths, NONE), None, transform, seed=0)
    for index in range(len(paths)):
        sample = dataset[(0, index)]
        check_sample(sample, 10, 24)
        assert max(sample.size.tolist()) <= 600
