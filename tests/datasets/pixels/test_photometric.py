"""Draws have the wanted distribution, and the changes of pixels agree with independent formulas."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchvision.transforms.functional import normalize

from datasets.pixels.photometric import Normalisation, Photometric, change, draw_photometric

NOTHING = Photometric((), False, None)
DRAWS = 4000


def apply_photometric(image: Image.Image, photometric: Photometric) -> Image.Image:
    picture = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    return Image.fromarray(change(picture, [photometric])[0].permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def drawn() -> list[Photometric]:
    rng = np.random.default_rng(0)
    return [draw_photometric(rng) for _ in range(DRAWS)]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def changed(picture: Image.Image, *jitter: tuple[str, float], grey: bool = False, sigma=None) -> np.ndarray:
    return np.asarray(apply_photometric(picture, Photometric(jitter, grey, sigma))).astype(float)


def test_probabilities(drawn: list[Photometric]) -> None:
    def within_four_sigma(happened: list[bool], p: float) -> bool:
        return abs(np.mean(happened) - p) < 4 * (p * (1 - p) / DRAWS) ** 0.5

    assert within_four_sigma([bool(d.jitter) for d in drawn], 0.8)
    assert within_four_sigma([d.grey for d in drawn], 0.2)
    assert within_four_sigma([d.sigma is not None for d in drawn], 0.5)
    assert within_four_sigma([d.grey and d.sigma is not None and bool(d.jitter) for d in drawn], 0.2 * 0.5 * 0.8)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4), ("hue", -0.1, 0.1), ("sigma", 0.1, 2)],
)
def test_strengths_are_uniform(drawn: list[Photometric], name: str, low: float, high: float) -> None:
    if name == "sigma":
        values = np.array([d.sigma for d in drawn if d.sigma is not None])
    else:
        values = np.array([dict(d.jitter)[name] for d in drawn if d.jitter])
    assert values.min() >= low
    assert values.max() <= high
    quantiles = np.quantile((values - low) / (high - low), [0.01, 0.25, 0.5, 0.75, 0.99])
    np.testing.assert_allclose(quantiles, [0.01, 0.25, 0.5, 0.75, 0.99], atol=0.04)


def test_adjustments_come_in_every_order(drawn: list[Photometric]) -> None:
    orders = [tuple(name for name, _ in d.jitter) for d in drawn if d.jitter]
    names = ("brightness", "contrast", "saturation", "hue")
    counts = [orders.count(order) for order in itertools.permutations(names)]
    assert sum(counts) == len(orders)
    assert min(counts) > 0.6 * len(orders) / 24


def test_nothing_changes_nothing(picture: Image.Image) -> None:
    assert np.array_equal(apply_photometric(picture, NOTHING), picture)


def test_brightness_scales_and_clips(picture: Image.Image) -> None:
    expected = np.minimum(np.asarray(picture) * 1.3, 255)
    np.testing.assert_allclose(changed(picture, ("brightness", 1.3)), expected, atol=1)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2 luma."""
    return rgb @ [0.299, 0.587, 0.114]


def test_contrast_stretches_around_the_mean_luma(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    mean = luma(pixels).mean()
    np.testing.assert_allclose(changed(picture, ("contrast", 0.7)), mean + 0.7 * (pixels - mean), atol=1.5)


def test_saturation_stretches_around_the_luma_of_each_pixel(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    grey = luma(pixels)[..., None]
    expected = np.clip(grey + 1.4 * (pixels - grey), 0, 255)
    np.testing.assert_allclose(changed(picture, ("saturation", 1.4)), expected, atol=1.5)


@pytest.mark.parametrize("shift", [-0.1, 0.05, 0.1])
def test_hue_turns_the_colour_circle(shift: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(200 / 255, 90 / 255, 40 / 255)
    expected = np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)) * 255
    image = Image.new("RGB", (4, 4), (200, 90, 40))
    np.testing.assert_allclose(changed(image, ("hue", shift))[0, 0], expected, atol=5)  # hue has 256 steps


def test_grey_is_luma_in_three_channels(picture: Image.Image) -> None:
    expected = luma(np.asarray(picture))[..., None].repeat(3, axis=2)
    np.testing.assert_allclose(changed(picture, grey=True), expected, atol=1)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 1.5, 2.0])
def test_blur_spreads_a_line_by_sigma_and_keeps_its_mass(sigma: float) -> None:
    line = np.zeros((41, 41, 3), dtype=np.uint8)
    line[:, 20] = 255
    profile = changed(Image.fromarray(line), sigma=sigma)[20, :, 0]
    assert profile.sum() == pytest.approx(255, rel=0.02)
    assert (profile @ (np.arange(41) - 20) ** 2 / profile.sum()) ** 0.5 == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blur_is_nearly_gaussian(picture: Image.Image, sigma: float) -> None:
    expected = gaussian_filter(np.asarray(picture).astype(float), (sigma, sigma, 0))
    inner = (slice(8, -8),) * 2  # without the border, which the two extend differently
    # Pillow approximates the bell by repeated boxes; the noise itself has a standard deviation of 74.
    np.testing.assert_allclose(changed(picture, sigma=sigma)[inner], expected[inner], atol=4)


def test_adjustments_apply_in_the_order_given(picture: Image.Image) -> None:
    first, second = ("brightness", 1.4), ("contrast", 0.6)
    step = apply_photometric(picture, Photometric((first,), False, None))
    np.testing.assert_array_equal(changed(picture, first, second), changed(step, second))
    assert (changed(picture, first, second) != changed(picture, second, first)).any()


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 7, 3, 5, 4), (0, 3, 5, 4)])
def test_normalisation_is_that_of_torchvision(shape: tuple[int, ...]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pictures = torch.randint(256, shape, dtype=torch.uint8)
    ours = Normalisation(mean, std)(pictures)
    torch.testing.assert_close(ours, normalize(pictures / 255, mean, std))
    strided = pictures.movedim(-3, -1).contiguous().movedim(-1, -3)
    assert torch.equal(Normalisation(mean, std)(strided), ours)


def test_a_single_pixel_goes_through_everything() -> None:
    everything = tuple({"brightness": 1.2, "contrast": 0.8, "saturation": 1.1, "hue": 0.05}.items())
    result = apply_photometric(Image.new("RGB", (1, 1), (10, 20, 30)), Photometric(everything, True, 2.0))
    assert result.size == (1, 1)
    assert result.mode == "RGB"
