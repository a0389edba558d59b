"""The pixels of samples against plain code with Pillow and torchvision, for the same plan."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images import list_images, load_image, load_reduced
from datasets.pixels import compiled, resample
from datasets.pixels.photometric import Photometric, change, draw_photometric
from datasets.pretext.two_view import TwoViewSample, TwoViewTransform, collate_two_view
from tests.datasets.pretext.plain_two_view import cut, render_plainly

NONE = np.empty((0, 4), dtype=np.float32)
PHOTOS = 8
# At scales of ImageNet the sizes are those of the paper; values are in 0..255.
OPTIONS = {
    "scales": range(320, 481, 16), "max_size": 600, "num_regions": 10, "crop_size": 128, "view_iou": 0.5,
    "mean": (0, 0, 0), "std": (1 / 255,) * 3,
}  # fmt: skip


@pytest.fixture(params=["compiled", "plain"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of the code: the compiled one, and the one for machines without a compiler."""
    if request.param == "plain":
        monkeypatch.setattr(compiled, "load", lambda: None)
    elif compiled.load() is None:
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="module")
def photos(real_data: Path) -> list[Image.Image]:
    folder = real_data / "photos" / "train"
    return [load_image(folder / name) for name in list_images(folder)[:: 1000 // PHOTOS]]


def assert_agree(ours: list[torch.Tensor], theirs: list[torch.Tensor], mean: float = 2, most: float = 6) -> None:
    """Mean and 99th percentile of the differences of all values, in 0..255."""
    differences = torch.cat([(a.float() - b).abs().flatten() for a, b in zip(ours, theirs, strict=True)]).numpy()
    assert differences.mean() <= mean
    assert np.percentile(differences, 99) <= most


@pytest.mark.usefixtures("_form")
def test_views_and_crops_agree_with_the_plain_arrangement(photos: list[Image.Image]) -> None:
    transform = TwoViewTransform(**OPTIONS)
    views, crops = [], []
    for seed, photo in enumerate(photos):
        plan = transform.plan(photo.size, NONE, np.random.default_rng(seed))
        sample = transform.render(photo, plan)
        plain_views, plain_crops = render_plainly(photo, plan, 128, [0] * 3, [1 / 255] * 3)
        views.append((sample.views, plain_views))
        crops.append((sample.crops, plain_crops))
    assert_agree(*zip(*views, strict=True))
    assert_agree(*zip(*crops, strict=True))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_compiled_colours_are_those_of_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two differ only by rounding, for any colours: a value just below a whole number may become one less."""
    if compiled.load() is None:
        pytest.skip("no C++ compiler")
    pictures = torch.randint(256, (4, 3, 40, 50), dtype=torch.uint8)
    pictures[1, :, :20] = pictures[1, :1, :20]  # greys
    strengths = (-0.1, 0.03, 0.1, 0.0) if name == "hue" else (0.6, 0.9, 1.4, 1.0)
    photometrics = [Photometric(((name, strength),), False, None) for strength in strengths]
    in_cpp = change(pictures, photometrics).float()
    monkeypatch.setattr(compiled, "load", lambda: None)
    differences = (in_cpp - change(pictures, photometrics)).abs()
    assert differences.max() <= 1
    assert differences.mean() < 0.01
    assert torch.equal(in_cpp[3], pictures[3].float())  # strengths that change nothing


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 1), (60, 40)])
def test_compiled_changes_are_those_of_pytorch_at_any_size(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled.load() is None:
        pytest.skip("no C++ compiler")
    rng = np.random.default_rng(0)
    photometrics = [draw_photometric(rng) for _ in range(60)]
    pictures = torch.randint(256, (60, 3, *size), dtype=torch.uint8)
    in_cpp = change(pictures, photometrics).float()
    monkeypatch.setattr(compiled, "load", lambda: None)
    differences = (in_cpp - change(pictures, photometrics)).abs()
    assert (
        differences.max() < 8
    )  # a value may become one less several times, and contrast may then increase the difference
    assert differences.mean() < 0.05


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("size", [(40, 40), (128, 128), (333, 17), (1, 1), (200, 150)])
def test_rectangles_are_resized_as_by_pillow(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
    boxes = [[0, 0, 200, 150], [3.3, 7.9, 180.1, 99.5], [199, 149, 200, 150], [0, 20.5, 1.5, 140]]
    for box in np.array(boxes, dtype=float):
        theirs = np.asarray(cut(Image.fromarray(picture), box, size)).astype(int)
        assert np.abs(resample.resample(picture, box, size) - theirs).max() <= 1  # Pillow rounds between its passes


def full_size(folder: Path, photo: Image.Image, orientation: int = 1, more: tuple[int, int] = (1, 3)) -> Path:
    """The photograph, enlarged four times plus ``more`` pixels, as a JPEG file with the EXIF ``orientation``."""
    exif = Image.Exif()
    exif[274] = orientation
    path = folder / "large.jpg"
    size = 4 * photo.width + more[0], 4 * photo.height + more[1]
    photo.resize(size, Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize(("orientation", "more"), [(1, (1, 3)), (1, (0, 0)), (3, (0, 0)), (6, (0, 0)), (8, (0, 0))])
def test_large_jpegs_are_read_at_a_fraction(
    tmp_path: Path, photos: list[Image.Image], orientation: int, more: tuple[int, int]
) -> None:
    transform = TwoViewTransform(**OPTIONS | {"scales": [160, 196], "crop_size": 64})
    pairs = []
    for seed, photo in enumerate(photos[:4]):
        path = full_size(tmp_path, photo, orientation, more)
        full = load_image(path)
        reduced, size = load_reduced(path, transform.useful_short_side)
        assert size == full.size
        assert reduced.size == (-(-full.width // 4), -(-full.height // 4))
        plan = transform.plan(size, NONE, np.random.default_rng(seed))
        pairs.append((transform.render(full, plan), transform.render(reduced, plan)))
    assert_agree([a.views for a, _ in pairs], [b.views for _, b in pairs])
    assert_agree([a.crops for a, _ in pairs], [b.crops for _, b in pairs])


def test_turned_jpegs_of_odd_sizes_are_read_in_full(tmp_path: Path, photos: list[Image.Image]) -> None:
    path = full_size(tmp_path, photos[0], orientation=6)
    reduced, size = load_reduced(path, 100)
    assert reduced.size == size == load_image(path).size


def test_no_detail_that_a_view_shows_is_left_out(tmp_path: Path, photos: list[Image.Image]) -> None:
    path = full_size(tmp_path, photos[0])
    for scale in (100, 200, 300, 480):
        transform = TwoViewTransform(**OPTIONS | {"scales": [scale], "max_size": 4000})
        reduced, size = load_reduced(path, transform.useful_short_side)
        for seed in range(5):
            geometry = transform.plan(size, NONE, np.random.default_rng(seed)).geometry
            sides = (geometry.source_crops()[:, 2:] - geometry.source_crops()[:, :2]) * reduced.width / size[0]
            assert (sides >= np.array(geometry.view_size) - 2).all()


@pytest.fixture
def samples(photos: list[Image.Image]) -> Iterator[list[list[TwoViewSample]]]:
    """The same samples, with colours changed in the worker or on the device."""
    transforms = [
        TwoViewTransform(**OPTIONS | {"scales": [96, 128], "crop_size": 32, "num_regions": 3, "change_later": later})
        for later in (False, True)
    ]
    return [
        [transform(photo, NONE, np.random.default_rng(seed)) for seed, photo in enumerate(photos)]
        for transform in transforms
    ]


def test_colours_changed_by_the_device_are_the_same(
    samples: list[list[TwoViewSample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, unchanged = (collate_two_view(of_one) for of_one in samples)
    assert not torch.equal(changed.batch.views, unchanged.batch.views)
    changed = changed.to("cpu")
    monkeypatch.setattr(compiled, "load", lambda: None)  # what a GPU runs
    batch = unchanged.to("cpu", non_blocking=True)
    for name in ("mask", "boxes", "size"):
        assert torch.equal(getattr(batch, name), getattr(changed, name))
    for name in ("views", "crops"):
        ours, theirs = getattr(batch, name), getattr(changed, name)
        assert ours.dtype == theirs.dtype == torch.float32
        assert ours.is_contiguous()
        assert_agree([ours], [theirs], mean=0.05, most=1)
    assert (batch.views.movedim(2, 0)[:, batch.mask] == 0).all()


def test_without_a_compiler_a_warning_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no_compiler"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    compiled.load.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"pixels\.cpp cannot be compiled .*no_compiler"):
            assert compiled.load() is None
        assert compiled.load() is None
        assert not list((tmp_path / "siamese_detr_pixels").iterdir())
    finally:
        compiled.load.cache_clear()


def test_the_compiled_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    try:
        first = compiled._compiled()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C++ compiler")
    written = first.stat().st_mtime_ns
    assert compiled._compiled() == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in first.parent.iterdir()] == [first.name]
