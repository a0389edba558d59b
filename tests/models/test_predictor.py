"""Detectors in Python: the detections do not depend on the form of an image."""

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
from models.detr import DETR
from models.predictor import load_detector
from tests.predicting import save_predicting, save_pretrained, write_images
from util.errors import CheckpointError, DataError
from util.nested_tensor import nested_tensor_from_tensor_list


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_predicting("conditional", tmp_path_factory.mktemp("checkpoint") / "c.pth")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_detector(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), [(90, 64)])[0]


def test_every_form_of_an_image(model, path):
    image = Image.open(path)
    pixels = np.array(image)
    forms = [str(path), path, image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    wanted = model(path, threshold=0.2)
    assert len(wanted) > 2
    for found in model(forms, threshold=0.2):
        assert torch.equal(found.boxes, wanted.boxes)
        assert torch.equal(found.scores, wanted.scores)
        assert found.names == wanted.names
    grey = model(pixels[..., 0], threshold=0.2)
    assert torch.equal(grey.boxes, model(np.stack([pixels[..., 0]] * 3, axis=-1), threshold=0.2).boxes)
    assert model([]) == []


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5, 3)), np.zeros((3, 5, 5, 3), np.uint8), torch.zeros(4, 5, 5, dtype=torch.uint8)]
)
def test_arrays_of_another_kind_are_refused(model, wrong):
    with pytest.raises(DataError, match=r"pass arrays as uint8 \[H, W, 3\]"):
        model(wrong)


def test_what_is_returned(model, path):
    found = model(path, threshold=0.0, max_detections=5)
    assert len(found) == 5
    assert (found.scores.diff() <= 0).all()
    assert [{"square": 10, "brick": 20}[name] for name in found.names] == found.category_ids
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert found.to_coco(7)[0] == {
        "image_id": 7, "category_id": found.category_ids[0], "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(found.scores[0]),
    }  # fmt: skip
    assert found.draw().size == found.size == (90, 64)


def test_boxes_are_those_of_the_detector(model, path):
    """The stages by hand: no resizing, softmax or sigmoid, corners in pixels."""
    image = model.prepare(Image.open(path))
    outputs = model.detector(nested_tensor_from_tensor_list([image]))
    scores = outputs["pred_logits"][-1, 0].sigmoid()
    found = model(path, threshold=0.0, max_detections=1)
    query, label = divmod(int(scores.argmax()), scores.shape[1])
    assert float(found.scores[0]) == pytest.approx(float(scores.max()))
    assert int(found.labels[0]) == label
    cx, cy, w, h = outputs["pred_boxes"][-1, 0, query].tolist()
    wanted = [(cx - w / 2) * 90, (cy - h / 2) * 64, (cx + w / 2) * 90, (cy + h / 2) * 64]
    assert found.boxes[0].tolist() == pytest.approx(wanted, abs=1e-4)


def test_batches_return_the_order_of_the_images(model, tmp_path):
    paths = write_images(tmp_path, [(96, 64), (60, 96), (96, 64), (60, 96)])
    one = [model(path, threshold=0.0) for path in paths]
    two = model(paths, threshold=0.0, batch_size=2)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=0)
        assert a.size == b.size


def test_exif_is_followed(model, path, tmp_path):
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "sideways.png", exif=exif)
    assert torch.equal(model(tmp_path / "sideways.png", threshold=0).boxes, model(path, threshold=0).boxes)


def test_precision_and_size_are_chosen_at_loading(checkpoint, model, path):
    half = load_detector(checkpoint, device="cpu", amp="bf16", eval_size=64)
    assert half(path, threshold=0).scores.dtype == torch.float32
    torch.testing.assert_close(
        half(path, threshold=0).scores[:3], model(path, threshold=0).scores[:3], atol=0.05, rtol=0
    )
    assert load_detector(checkpoint, device="cpu", eval_size=32).resized((90, 64)) == (45, 32)
    assert not any(parameter.requires_grad for parameter in model.detector.parameters())


def test_hub(checkpoint, path, model):
    from_hub = torch.hub.load(
        str(hubconf.__file__).rpartition("/")[0], "detector", checkpoint=checkpoint, source="local"
    )
    assert torch.equal(from_hub(path, threshold=0).scores, model(path, threshold=0).scores)


@pytest.mark.parametrize("name", ["detr_resnet50", "conditional_detr_resnet50", "deformable_detr_resnet50"])
def test_untrained_detectors_by_name(name, tmp_path):
    small = {"enc_layers": 1, "dec_layers": 1, "hidden_dim": 64, "dim_feedforward": 32, "num_queries": 5}
    detector = getattr(hubconf, name)(num_classes=3, **small)
    assert isinstance(detector, DETR)
    outputs = detector(nested_tensor_from_tensor_list([torch.zeros(3, 64, 64)]))
    assert outputs["pred_logits"].shape == (1, 1, 5, 4 if name.startswith("detr") else 3)
    torch.save({"model": detector.state_dict()}, tmp_path / "public.pth")
    again = getattr(hubconf, name)(pretrained=str(tmp_path / "public.pth"))
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in again.state_dict().items())
    others = {"detr_resnet50": "conditional_detr_resnet50"}.get(name, "detr_resnet50")
    with pytest.raises(CheckpointError, match=r"public\.pth: --detr .* not"):
        getattr(hubconf, others)(pretrained=str(tmp_path / "public.pth"))


def test_a_pretrained_checkpoint_detects_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="--query"):
        load_detector(save_pretrained("siamese", "conditional", tmp_path / "pre.pth"))
