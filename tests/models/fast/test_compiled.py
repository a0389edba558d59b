"""``--compile``: the same losses and gradients, by few graphs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.backbone import Backbone
from models.criterion import build_criterion
from models.fast import compiled
from models.fast.compiled import compile_steps
from models.supervised import SupervisedDETR
from tests.models.detectors import small_args, small_detector, unequal_images
from tests.models.pretext.test_siamese import DETRS, build, random_batch
from util.errors import UserError
from util.nested_tensor import NestedTensor

TOLERANCE = 1e-4
NOISE = 1e-5
"""Of gradients that are zero but for rounding, such as that of a bias in front of a norm."""


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch._dynamo.reset()


class OneConvolution(nn.Module):
    """A body that is compiled in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, kernel_size=32, stride=32)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x).relu()]


def supervised(detr: str, *, small_backbone: bool, **changes: object) -> SupervisedDETR:
    costs = {"set_cost_class": 1.0, "set_cost_bbox": 5.0, "set_cost_giou": 2.0}
    weights = {"cls_loss_coef": 1.0, "bbox_loss_coef": 5.0, "giou_loss_coef": 2.0, "eos_coef": 0.1, "focal_alpha": 0.25}
    detector = small_detector(detr, **changes)
    if small_backbone:
        detector.backbone[0] = Backbone(body=OneConvolution(), strides=[32], num_channels=[16])
        detector.input_proj = type(detector.input_proj)(16, detector.hidden_dim)
    args = small_args(detr, **costs, **weights)
    criterion = build_criterion(args, num_logits=detector.num_logits, classification=detector.classification)
    return SupervisedDETR(detector=detector, criterion=criterion).train()


def labelled(*counts: int, sides: tuple[tuple[int, int], ...] = ((64, 96), (96, 64))):
    """Images of these (height, width) with so many objects each."""
    generator = torch.Generator().manual_seed(0)
    targets = [
        {
            "labels": torch.randint(4, (count,), generator=generator),
            "boxes": 0.2 + 0.4 * torch.rand(count, 4, generator=generator),
        }
        for count in counts
    ]
    return unequal_images(*sides), targets


def step(method: nn.Module, batch: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients; the random numbers of a step are the same for every method."""
    torch.manual_seed(0)
    method.zero_grad()
    loss, logs = method(batch)
    loss.backward()
    return logs, {name: value.grad for name, value in method.named_parameters() if value.grad is not None}


def assert_same_steps(method: nn.Module, batches: list, backend: str, **options: bool) -> nn.Module:
    """Returns the compiled method."""
    other = copy.deepcopy(method)
    compile_steps(other, backend, **options)
    names = list(method.state_dict())
    for batch in batches:
        (logs, gradients), (compiled_logs, compiled_gradients) = step(method, batch), step(other, batch)
        assert compiled_gradients.keys() == gradients.keys()
        for name, value in logs.items():
            torch.testing.assert_close(compiled_logs[name], value, rtol=TOLERANCE, atol=1e-6, msg=name)
        for name, value in gradients.items():
            limit = TOLERANCE * value.abs().max() + NOISE
            assert (compiled_gradients[name] - value).abs().max() <= limit, name
    assert list(other.state_dict()) == names
    return other


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_is_traced_is_the_step(cuda_graphs):
    """With the quickest of backends, which records nothing; the real one comes below."""
    method = supervised("vanilla", small_backbone=True, enc_layers=1, dec_layers=1)
    other = assert_same_steps(method, [labelled(3, 2)], "eager", cuda_graphs=cuda_graphs)
    assert not torch._dynamo.utils.counters["graph_break"]
    images, _ = labelled(3, 2)
    expected, actual = (part.detector.eval()(images) for part in (method, other))
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=1e-6)


@pytest.mark.slow
def test_the_first_graphs_are_all():
    """Other sizes and numbers of objects need no other ones, though the first images are square together."""
    method = supervised("vanilla", small_backbone=True, enc_layers=1, dec_layers=2)
    other = assert_same_steps(method, [labelled(3, 2)], "aot_eager")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for counts, sides in (((1, 4), ((96, 128), (128, 64))), ((2, 5), ((160, 64), (96, 96)))):
        step(other, labelled(*counts, sides=sides))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize("detr", DETRS)
def test_pretraining(detr):
    method = build(detr=detr, query_jitter=0.0).train()
    # In training, this head's batch norms over two images amplify rounding: from float32 to float64 without --compile
    # gradients change by a third. The head itself is not compiled; its gradient flows through what is.
    method.global_head.eval()
    assert_same_steps(method, [random_batch(), random_batch(3)], "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"with_box_refine": True, "two_stage": True}], ids=["plain", "two_stage"])
def test_finetuning_on_several_levels(changes):
    # two channels a group: alone in its group, a channel loses its bias by the norm, and the gradient is rounding only
    method = supervised("deformable", small_backbone=False, hidden_dim=64, **changes)
    assert_same_steps(method, [labelled(3, 2), labelled(0, 0)], "inductor")


@pytest.mark.parametrize("detr", ["vanilla", "conditional", "dab"])
def test_what_a_gpu_records_lies_there_and_nothing_waits_for_it(detr):
    """Otherwise PyTorch would not record it. Imitated tensors need no GPU, and raise an error where one would wait."""
    detector = small_detector(detr).train()
    with FakeTensorMode(), OnDevices() as found:
        for module in detector.modules():
            for own in (module._parameters, module._buffers):
                own |= {name: on_gpu(value) for name, value in own.items() if value is not None}
        images = NestedTensor(torch.empty(2, 3, 64, 96, device="cuda"), torch.empty(2, 64, 96, device="cuda").bool())
        found.devices.clear()
        detector.ask(detector.features(images), images.mask, detector.queries(2))
    assert found.devices == {"cuda"}


def on_gpu(value: Tensor) -> Tensor:
    other = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return nn.Parameter(other, value.requires_grad) if isinstance(value, nn.Parameter) else other


class OnDevices(TorchDispatchMode):
    """Where the results of operations lie."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.devices |= {value.device.type for value in tree_leaves(results) if isinstance(value, Tensor)}
        return results


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    method = supervised("vanilla", small_backbone=True, enc_layers=1, dec_layers=1)
    monkeypatch.setattr(compiled.torch, "compile", lambda *_, **__: failing)
    with pytest.raises(UserError, match=r"--compile: torch.compile does not work here \(no compiler\)"):
        compile_steps(method)


def failing(*_: object) -> None:
    raise RuntimeError("no compiler\nand much more")
