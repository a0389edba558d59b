"""``--amp``: which operations multiply in 16 bits."""

import argparse
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.precision import computing
from tests.models.detectors import small_detector, unequal_images
from tests.models.pretext.test_siamese import build, random_batch
from training import speed_up
from util.precision import AMP_TYPES

CPU = torch.device("cpu")
CONVOLUTIONS = {"aten.convolution", "aten.convolution_backward"}
PRODUCTS = {"aten.mm", "aten.addmm", "aten.bmm"}


class TypesOf(TorchDispatchMode):
    """The types of the tensors that each operation gets."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, Tensor)]
        self.types[str(func).rpartition(".")[0]] |= {value.dtype for value in tensors}
        return func(*args, **(kwargs or {}))

    def of(self, names: set[str]) -> set[torch.dtype]:
        return set().union(*(self.types[name] for name in names))


@pytest.mark.parametrize("amp", AMP_TYPES)
def test_pretraining_multiplies_in_the_types_of_the_flag(amp):
    method = build().train()
    method.global_head.eval()  # its batch norms over almost equal views turn rounding into per cents
    expected, _ = method(random_batch())
    speed_up(method, argparse.Namespace(amp=amp, compile=False))
    with TypesOf() as found, computing(method, CPU, amp):
        loss, _ = method(random_batch())
        loss.backward()
    low = AMP_TYPES[amp] or torch.float32
    assert low in found.of({"aten.convolution"})
    assert (low in found.of(PRODUCTS)) == (amp != "bf16_backbone")
    torch.testing.assert_close(loss, expected, rtol=0.03, atol=0)
    assert all(value.grad.dtype == torch.float32 for value in method.parameters() if value.grad is not None)


@pytest.mark.parametrize("detr", ["conditional", "deformable"])
def test_a_trained_backbone_alone_multiplies_in_bf16(detr):
    detector = small_detector(detr).train()
    images = unequal_images((64, 96), (96, 64))
    with TypesOf() as found, computing(detector, CPU, "bf16_backbone"):
        features = detector.features(images)
    assert found.of(CONVOLUTIONS) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        maps = detector.backbone[0].body(images.tensors)
    for feature, expected in zip(features, maps.values(), strict=True):
        assert feature.tensors.dtype == torch.float32
        assert torch.equal(feature.tensors, expected.float())
    with TypesOf() as found:
        detector.ask(features, images.mask, detector.queries(2))[2]["pred_boxes"].sum().backward()
    assert torch.float32 in found.of(PRODUCTS)
    assert torch.bfloat16 not in found.of(PRODUCTS)
    assert torch.bfloat16 in found.of(CONVOLUTIONS), "its gradient as well"
    with TypesOf() as found:
        detector.features(images)
    assert found.of(CONVOLUTIONS) == {torch.float32}, "outside of the context nothing has changed"
