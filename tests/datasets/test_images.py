"""Reading and finding image files."""

import io
import os
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.images import Reading, list_images, load_image, load_reduced
from util.errors import DataError

ORIENTATIONS = {  # EXIF tag 274 -> what turns stored pixels upright
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: np.rot90,
}


def noise(height=20, width=30, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(path, size=None):
    image = load_image(path, size)
    assert image.mode == "RGB"
    return np.asarray(image)


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_exact(tmp_path, extension):
    Image.fromarray(noise()).save(tmp_path / f"a.{extension}")
    np.testing.assert_array_equal(pixels(tmp_path / f"a.{extension}"), noise())


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_orientation(tmp_path, orientation, channels, extension):
    stored = noise(channels=channels)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(stored.squeeze()).save(path, exif=exif(orientation))
    upright = np.broadcast_to(ORIENTATIONS[orientation](stored), (*ORIENTATIONS[orientation](stored).shape[:2], 3))
    np.testing.assert_array_equal(pixels(path), upright)
    image, size = load_reduced(path, 1)
    np.testing.assert_array_equal(np.asarray(image), upright)
    assert size == image.size


def test_exif_of_jpeg_and_annotated_size(tmp_path):
    path = tmp_path / "a.jpg"
    smooth = np.zeros((16, 32, 3), dtype=np.uint8)
    smooth[:, :16] = 200
    Image.fromarray(smooth).save(path, exif=exif(6), quality=95)
    upright = np.rot90(smooth, -1)
    assert np.abs(pixels(path).astype(int) - upright).max() < 5
    assert np.abs(pixels(path, (16, 32)).astype(int) - upright).max() < 5
    assert np.abs(pixels(path, (32, 16)).astype(int) - smooth).max() < 5, "annotated on the stored pixels"
    with pytest.raises(DataError, match=r"a\.jpg: the image is 16x32 but its annotation says 33x16"):
        load_image(path, (33, 16))


def test_exif_that_keeps_the_size_is_applied(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png", exif=exif(3))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png", (30, 20)), noise()[::-1, ::-1])


def test_cmyk_tiff(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif")
    expected = [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0], [204, 204, 204]]
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0], expected)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, extension):
    grey = np.array([[0, 128, 129, 257, 32768, 65535, 65406, 65407]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{extension}")
    expected = [0, 0, 1, 1, 128, 255, 254, 255]  # v / 257 rounded: 128/257 = 0.498, 65406/257 = 254.498
    np.testing.assert_array_equal(pixels(tmp_path / f"a.{extension}")[0], np.repeat(np.c_[expected], 3, axis=1))


def test_rotated_16_bit_grey(tmp_path):
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif(6))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[..., 0], [[3, 0], [4, 1], [5, 2]])


def test_32_bit_grey_of_16_bit_values(tmp_path):
    Image.fromarray(np.array([[0, 65535, 257]], dtype=np.int32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[0, :, 1], [0, 255, 1])


@pytest.mark.parametrize("array", [np.array([[70000]], np.int32), np.array([[0.5]], np.float32)])
def test_grey_of_unknown_range(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: .*convert the file to 8 or 16 bits"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette(tmp_path, recwarn, transparency):
    image = Image.fromarray(np.array([[0, 1, 2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    recwarn.clear()
    expected = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [40, 50, 60]]
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[0], expected)
    assert not recwarn.list


def test_transparency_is_dropped(tmp_path):
    rgba = noise(channels=4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(pixels(tmp_path / "rgba.png"), rgba[..., :3])
    la = noise(channels=2)
    Image.fromarray(la).save(tmp_path / "la.png")
    np.testing.assert_array_equal(pixels(tmp_path / "la.png"), la[..., :1].repeat(3, axis=2))


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[0, :, 0], [255, 0, 255])


def encoded(extension, **options):
    stream = io.BytesIO()
    Image.fromarray(noise()).save(stream, extension, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated(tmp_path, kind, kept):
    data = encoded(kind)
    path = tmp_path / "broken.img"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"broken\.img: .*not an image") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_not_an_image(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is a text, and long enough to look at")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in {
        "empty.jpg": "empty file",
        "text.jpg": "not an image of any known format",
        "folder.jpg": "directory",
        "missing.jpg": "no such image file",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_too_large(tmp_path):
    """The size is in the header: nothing is decoded."""
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")
    told = r"bomb\.png: too large: 14000x14000 is 196,000,000 pixels.*limit is 178,956,970.*raise --max_image_pixels"
    with pytest.raises(DataError, match=told):
        load_image(tmp_path / "bomb.png")
    Image.new("1", (100, 100)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="the limit is 9,999"):
        load_image(tmp_path / "small.png", reading=Reading(max_pixels=9_999))
    limit = Image.MAX_IMAGE_PIXELS
    assert load_image(tmp_path / "small.png", reading=Reading(max_pixels=10_000)).size == (100, 100)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.ps"])
def test_postscript_starts_nothing(tmp_path, monkeypatch, name):
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(proof) (w) file\n%%EOF\n"
    (tmp_path / name).write_bytes(script)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/proof\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(DataError, match="not an image of any known format"):
        load_image(tmp_path / name)
    assert not (tmp_path / "proof").exists()


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "device.jpg"):
        with pytest.raises(DataError, match=rf"{name}: a pipe, socket or device"):
            load_image(tmp_path / name)


def test_a_jpeg_without_its_end_is_grey_there(tmp_path):
    grey = np.full((64, 64, 3), 250, dtype=np.uint8)
    grey[::2] = 40
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(stream.getvalue()[:-300])
    with pytest.raises(DataError, match=r"truncated.*--allow_truncated"):
        load_image(tmp_path / "a.jpg")
    found = np.asarray(load_image(tmp_path / "a.jpg", reading=Reading(allow_truncated=True)))
    assert (found[-1] == 128).all()
    assert np.abs(found[:8].astype(int) - grey[:8]).max() < 20
    (tmp_path / "a.png").write_bytes(encoded("PNG")[:-200])
    with pytest.raises(DataError, match=r"a\.png: not an image, or damaged"):
        load_image(tmp_path / "a.png", reading=Reading(allow_truncated=True))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "GIF", "PPM"]))
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_a_data_error(tmp_path, seed, kind):
    rng = random.Random(seed)
    data = bytearray(encoded(kind, **({"exif": exif(6)} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {})))
    for _ in range(rng.randint(1, 4)):
        data[min(int(rng.expovariate(1 / 80)), len(data) - 1)] = rng.randrange(256)
    path = tmp_path / "damaged"
    path.write_bytes(data)
    message = f"{path}: "
    try:
        assert load_image(path).mode == "RGB"
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_list_images(tmp_path):
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    for name in ("b.JPG", "a/z.jpeg", "a/b/c.png", "notes.txt", ".hidden.jpg", "a/.cache/d.jpg", "noextension"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    outside.mkdir()
    (outside / "linked.webp").touch()
    (root / "link").symlink_to(outside)
    (root / "file.tif").symlink_to(outside / "linked.webp")
    (root / "a" / "loop").symlink_to(root)
    assert list_images(root) == ["a/b/c.png", "a/z.jpeg", "b.JPG", "file.tif", "link/linked.webp"]


def test_list_images_of_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"empty: no images in this folder or below"):
        list_images(tmp_path / "empty")
    for name in ("file", "missing"):
        with pytest.raises(DataError, match=f"{name}: no such folder"):
            list_images(tmp_path / name)


def test_list_images_dangling_link(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: dangling link to .*gone\.jpg"):
        list_images(tmp_path)


def test_real_photographs(real_data):
    folder = real_data / "photos" / "train"
    names = list_images(folder)
    assert len(names) == 1000
    assert names == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.JPEG"))
    assert min(load_image(folder / names[0]).size) == 288
