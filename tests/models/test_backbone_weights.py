"""Published weights: SwAV's and torchvision's ResNets, timm's models, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from models.backbone import Backbone, build_backbone
from models.backbone_weights import load_backbone_weights
from tests.models.detectors import unequal_images
from tests.models.public_layouts import SWAV_LAYOUT
from util.errors import CheckpointError

LITE0 = "timm:tf_efficientnet_lite0"


def build(name: str, **changes: object) -> Backbone:
    options = {"multi_scale": False, "dilation": False, "feature_stride": None, "trainable": False}
    return build_backbone(name=name, **{**options, **changes})


def resnet18_state() -> dict[str, torch.Tensor]:
    """A whole torchvision ResNet-18 with random values everywhere."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    return {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}


def save(content: object, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_swav_file(tmp_path):
    # One value each, spread by expand: the file stays small.
    weights = {name: torch.tensor(float(n)).expand(shape) for n, (name, shape) in enumerate(SWAV_LAYOUT.items())}
    path = save(weights, tmp_path)
    backbone = build("resnet50")
    report = load_backbone_weights(backbone, path)
    state = backbone.state_dict()
    assert sorted(report.loaded) == sorted(state)
    assert len(report.loaded) == 53 * 5
    assert all(torch.equal(value, weights[name.replace("body.", "module.", 1)]) for name, value in state.items())
    assert report.new == []
    unused = [n for n in weights if "num_batches_tracked" in n or "projection_head" in n or "prototypes" in n]
    assert len(unused) == 53 + 9 + 1
    assert sorted(report.left_over) == sorted(unused)
    assert "module.projection_head.* (8), module.prototypes.weight" in report.describe(path)


@pytest.mark.parametrize(
    ("wrap", "others"),
    [
        (lambda state: state, []),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, []),
        (lambda state: {"state_dict": state, "epoch": 3, "optimizer": {}}, ["epoch", "optimizer"]),
        (lambda state: {"model": {f"module.{name}": v for name, v in state.items()}, "step": 1}, ["step"]),
        (lambda state: {**state, "note": "text"}, ["note"]),
    ],
    ids=["bare", "module", "state_dict", "model", "with-text"],
)
def test_torchvision_file_however_it_is_wrapped(tmp_path, wrap, others):
    state = resnet18_state()
    backbone = build("resnet18")
    report = load_backbone_weights(backbone, save(wrap(state), tmp_path))
    for name, value in backbone.body.state_dict().items():
        assert torch.equal(value, state[name]), name
    unused = {name for name in state if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    assert {name.removeprefix("module.") for name in report.left_over} == unused | set(others)
    assert len(report.loaded) + len(report.left_over) == len(state) + len(others)


def test_public_lite0_weights_give_timms_features(real_data):
    path = real_data / "backbones" / "tf_efficientnet_lite0.pth"
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(torch.load(path, weights_only=True))
    backbone = build(LITE0, multi_scale=True).train()
    report = load_backbone_weights(backbone, path)
    assert sorted(report.loaded) == sorted(backbone.state_dict())
    heads = {name.split(".")[0] for name in report.left_over if not name.endswith("num_batches_tracked")}
    assert heads == {"conv_head", "bn2", "classifier"}
    # In double precision, or the different order of a batch norm's operations would show.
    images = unequal_images((97, 130), (59, 64))
    images.tensors = images.tensors.double()
    model.double().eval()
    backbone.double()
    with torch.no_grad():
        x = model.bn1(model.conv_stem(images.tensors))
        stages = [x := block(x) for block in model.blocks]
        for feature, wanted in zip(backbone(images), (stages[2], stages[4], stages[6]), strict=True):
            torch.testing.assert_close(feature.tensors, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "regnety_002", "mobilenetv3_small_050", "ghostnet_050"])
def test_full_timm_models_fit_although_timm_renames_their_stages(tmp_path, name):
    model = timm.create_model(name, pretrained=False).eval()
    backbone = build(f"timm:{name}")
    load_backbone_weights(backbone, save(model.state_dict(), tmp_path))
    images = unequal_images((64, 96))
    features_only = timm.create_model(name, pretrained=False, features_only=True).eval()
    flattened = {key.replace(".", "_", 1): value for key, value in model.state_dict().items()}
    own = features_only.state_dict()
    features_only.load_state_dict({k: v for k, v in {**flattened, **model.state_dict()}.items() if k in own})
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0].tensors, features_only(images.tensors)[-1], rtol=1e-4, atol=1e-5)


def test_half_precision_weights_are_widened(tmp_path):
    state = {name: value.half() for name, value in resnet18_state().items()}
    backbone = build("resnet18")
    load_backbone_weights(backbone, save(state, tmp_path))
    assert backbone.body.conv1.weight.dtype == torch.float32
    assert torch.equal(backbone.body.conv1.weight, state["conv1.weight"].float())


def refusal(backbone: Backbone, path: Path) -> str:
    """The message of the refusal, which names the file and leaves the backbone as it was."""
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_backbone_weights(backbone, path)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_one_wrong_shape(tmp_path):
    state = resnet18_state()
    state["layer3.0.conv1.weight"] = torch.zeros(256, 128, 1, 1)
    message = refusal(build("resnet18"), save({f"module.{name}": v for name, v in state.items()}, tmp_path))
    assert "module.layer3.0.conv1.weight has shape [256, 128, 1, 1]" in message
    assert "layer3.0.conv1.weight has [256, 128, 3, 3]" in message


def test_one_missing_name(tmp_path):
    state = resnet18_state()
    del state["layer4.1.bn2.running_var"]
    assert "lacks layer4.1.bn2.running_var" in refusal(build("resnet18"), save(state, tmp_path))


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_another_resnet(tmp_path, name):
    assert "change --backbone" in refusal(build(name), save(resnet18_state(), tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        {"encoder.weight": torch.zeros(2), "encoder.bias": torch.zeros(2)},
        {},
        {"state_dict": {}},
        {"epoch": 1},
        {3: torch.zeros(1)},
    ],
    ids=["other-names", "empty", "empty-state-dict", "no-tensors", "numbered"],
)
def test_a_file_that_fits_nothing(tmp_path, content):
    message = refusal(build("resnet18"), save(content, tmp_path))
    assert f"none of its {sum(torch.is_tensor(value) for value in content.values())} tensors" in message


def test_a_file_without_names(tmp_path):
    assert "holds a list" in refusal(build("resnet18"), save([torch.zeros(1)], tmp_path))
    assert "holds a Tensor" in refusal(build("resnet18"), save(torch.zeros(1), tmp_path))


class Malicious:
    """Its unpickling would call ``print``."""

    def __reduce__(self) -> tuple:
        return print, ("code ran",)


def test_unreadable_files(tmp_path, capsys):
    backbone = build("resnet18")
    whole = save(resnet18_state(), tmp_path)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(whole.read_bytes()[:100_000])
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    for path in (tmp_path / "missing.pth", truncated, text, save({"x": Malicious()}, tmp_path, "code.pth")):
        refusal(backbone, path)
    assert "code ran" not in capsys.readouterr().out
