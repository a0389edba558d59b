"""A state dict goes into a detector: names and shapes, class heads, queries, parameters with several names."""

import pytest
import torch
from torch import nn

from models.checkpoints.load import load_detector, num_class_logits
from util.errors import CheckpointError, UserError


class _Detector(nn.Module):
    def __init__(self, classes=3, width=4, layers=2):
        super().__init__()
        self.query_embed = nn.Embedding(5, width)
        self.transformer = nn.ModuleDict(
            {"decoder": nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(width, width) for _ in range(layers))})}
        )
        self.class_embed = nn.Linear(width, classes)


def test_detector_loads_without_its_class_head():
    source, detector = _Detector(classes=7), _Detector()
    head = detector.class_embed.weight.clone()
    report = load_detector(detector, source.state_dict(), "f.pth", keep_class_head=False)
    assert torch.equal(detector.query_embed.weight, source.query_embed.weight)
    assert torch.equal(detector.class_embed.weight, head)
    assert report.new == report.left_over == ["class_embed.weight", "class_embed.bias"]
    assert "query_embed.weight" in report.loaded


def test_chosen_parts_start_anew():
    source, detector = _Detector(layers=11), _Detector(layers=11)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    parts = ["query_embed", "transformer.decoder.layers.1"]
    report = load_detector(detector, source.state_dict(), "f.pth", keep_class_head=True, new_parts=parts)
    new = {"query_embed.weight", *(f"transformer.decoder.layers.1.{kind}" for kind in ("weight", "bias"))}
    assert set(report.new) == set(report.left_over) == new  # not layers.10
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name] if name in new else source.state_dict()[name]), name
    with pytest.raises(UserError, match=r"--new_parts decoder: .* it has class_embed, query_embed, transformer"):
        load_detector(detector, source.state_dict(), "f.pth", keep_class_head=True, new_parts=["decoder"])


class _LayeredDetector(_Detector):
    """A class head a layer, which the decoder knows, too."""

    def __init__(self, classes=3):
        super().__init__()
        self.class_embed = nn.ModuleList(nn.Linear(4, classes) for _ in range(2))
        self.transformer["decoder"]["class_embed"] = self.class_embed


def test_detector_loads_without_the_class_heads_of_its_layers():
    source, detector = _LayeredDetector(classes=7), _LayeredDetector()
    report = load_detector(detector, source.state_dict(), "f.pth", keep_class_head=False)
    names = [f"class_embed.{index}.{kind}" for index in range(2) for kind in ("weight", "bias")]
    assert set(report.new) == set(report.left_over) == {*names, *(f"transformer.decoder.{name}" for name in names)}
    # a part is new under all its names
    again = load_detector(detector, source.state_dict(), "f.pth", keep_class_head=False, new_parts=["class_embed"])
    assert set(again.new) == set(report.new)
    assert (num_class_logits(source.state_dict()), num_class_logits(_Detector().state_dict())) == (7, 3)


@pytest.mark.parametrize(
    ("saved", "flag"),
    [({"width": 8}, "--num_queries"), ({"layers": 1}, "--dec_layers"), ({"layers": 3}, "--dec_layers")],
)
def test_another_architecture_names_the_flag(saved, flag):
    with pytest.raises(CheckpointError, match=flag) as error:
        load_detector(_Detector(), _Detector(**saved).state_dict(), "f.pth", keep_class_head=True)
    assert "f.pth" in str(error.value)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (3, "the first 3 of the file's 3 are kept, 2 are new"),
        (9, "the first 5 of the file's 9 are kept, the others are dropped"),
    ],
)
def test_queries_are_extended_or_truncated(found, told):
    detector = _Detector()
    own = detector.query_embed.weight.detach().clone()
    weights = _Detector().state_dict() | {"query_embed.weight": torch.randn(found, 4)}
    with pytest.raises(CheckpointError, match="--num_queries"):
        load_detector(detector, weights, "f.pth", keep_class_head=True)
    report = load_detector(detector, weights, "f.pth", keep_class_head=True, resize_queries=True)
    kept = min(found, 5)
    assert torch.equal(detector.query_embed.weight[:kept], weights["query_embed.weight"][:kept])
    assert torch.equal(detector.query_embed.weight[kept:], own[kept:])
    assert told in report.describe("f.pth")


def test_queries_of_another_width_are_not_resized():
    weights = _Detector().state_dict() | {"query_embed.weight": torch.randn(3, 8)}
    with pytest.raises(CheckpointError, match="--hidden_dim"):
        load_detector(_Detector(), weights, "f.pth", keep_class_head=True, resize_queries=True)


def test_of_several_values_for_one_parameter_the_last_counts_and_the_others_are_told():
    detector = _LayeredDetector()
    weights = _LayeredDetector().state_dict()
    name = "transformer.decoder.class_embed.1.bias"
    weights[name] = weights[name] + 1
    report = load_detector(detector, weights, "f.pth", keep_class_head=True)
    assert report.left_over == [name]
    assert name not in report.loaded
    assert torch.equal(detector.class_embed[1].bias, weights["class_embed.1.bias"])
