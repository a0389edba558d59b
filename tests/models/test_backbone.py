"""Backbones: names, maps, masks, what is frozen, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from models.backbone import Backbone, backbone_normalization, build_backbone
from tests.models.detectors import randomize, unequal_images
from util.errors import UserError
from util.nested_tensor import NestedTensor

# Sides that no stride divides; the second image is padded by more than a cell of every map.
SIZES = ((97, 130), (59, 64))

LITE0 = "timm:tf_efficientnet_lite0"  # padding as in TensorFlow, BatchNormAct2d
CONVNEXT = "timm:convnext_atto"  # no batch norm; timm renames stages.0 to stages_0; maps rounded down
REGNET = "timm:regnety_002"


def build(name: str, **changes: object) -> Backbone:
    options = {"multi_scale": False, "dilation": False, "feature_stride": None, "trainable": True}
    return build_backbone(name=name, **{**options, **changes})


@pytest.mark.parametrize(
    ("name", "options", "channels", "strides"),
    [
        ("resnet18", {}, [512], [32]),
        ("resnet34", {}, [512], [32]),
        ("resnet50", {}, [2048], [32]),
        ("resnet101", {}, [2048], [32]),
        ("resnet50", {"dilation": True}, [2048], [16]),
        ("resnet18", {"multi_scale": True}, [128, 256, 512], [8, 16, 32]),
        ("resnet50", {"multi_scale": True}, [512, 1024, 2048], [8, 16, 32]),
        ("resnet50", {"multi_scale": True, "dilation": True}, [512, 1024, 2048], [8, 16, 16]),
        (LITE0, {}, [320], [32]),
        (LITE0, {"feature_stride": 32}, [320], [32]),
        (LITE0, {"feature_stride": 16}, [112], [16]),
        (LITE0, {"multi_scale": True}, [40, 112, 320], [8, 16, 32]),
        (REGNET, {"multi_scale": True}, [56, 152, 368], [8, 16, 32]),
        (REGNET, {"feature_stride": 16}, [152], [16]),
    ],
)
def test_maps_have_the_stated_channels_and_strides(name, options, channels, strides):
    backbone = build(name, **options)
    assert (backbone.num_channels, backbone.strides) == (channels, strides)
    with torch.no_grad():
        features = backbone(unequal_images(*SIZES))
    sizes = [(-(-97 // stride), -(-130 // stride)) for stride in strides]  # rounded up
    assert [tuple(f.tensors.shape) for f in features] == [
        (2, width, *size) for width, size in zip(channels, sizes, strict=True)
    ]
    assert [tuple(f.mask.shape) for f in features] == [(2, *size) for size in sizes]


@pytest.mark.parametrize(("name", "size_32"), [("resnet18", (4, 5)), (LITE0, (4, 5)), (CONVNEXT, (3, 4))])
def test_masks_take_the_nearest_pixel(name, size_32):
    images = unequal_images(*SIZES)
    with torch.no_grad():
        features = build(name, multi_scale=True)(images)
    assert features[-1].mask.shape[1:] == size_32
    for feature in features:
        height, width = feature.mask.shape[1:]
        rows, columns = np.arange(height) * 97 // height, np.arange(width) * 130 // width
        np.testing.assert_array_equal(feature.mask.numpy(), images.mask.numpy()[:, rows][:, :, columns])


def test_mask_worked_by_hand():
    images = unequal_images((97, 130), (40, 60))
    mask = build("resnet18")(images)[0].mask
    assert not mask[0].any()
    # Rows 0..3 look at pixels 0, 24, 48, 72 of 97, columns 0..4 at 0, 26, 52, 78, 104 of 130.
    valid = torch.zeros(4, 5, dtype=torch.bool)
    valid[:2, :3] = True
    assert torch.equal(mask[1], ~valid)


def test_an_image_smaller_than_a_cell_keeps_a_valid_position():
    mask = build("resnet18")(unequal_images((320, 320), (5, 3)))[0].mask
    assert not mask[1, 0, 0]
    assert mask[1].sum() == mask[1].numel() - 1


@pytest.mark.parametrize(("name", "dilated"), [("resnet18", False), ("resnet50", True)])
def test_resnet_equals_torchvision_with_batch_norm_in_evaluation(name, dilated):
    dilation = {"replace_stride_with_dilation": [False, False, dilated]} if dilated else {}
    reference = torchvision.models.get_model(name, weights=None, **dilation).eval()
    backbone = build(name, multi_scale=True, dilation=dilated)
    randomize(backbone)
    mismatch = reference.load_state_dict(backbone.body.state_dict(), strict=False)
    assert not mismatch.unexpected_keys
    assert all(key.startswith("fc.") or key.endswith("num_batches_tracked") for key in mismatch.missing_keys)
    images = unequal_images((65, 97))
    with torch.no_grad():
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images.tensors))))
        x = reference.layer1(x)
        for feature, layer in zip(
            backbone(images), (reference.layer2, reference.layer3, reference.layer4), strict=True
        ):
            x = layer(x)
            torch.testing.assert_close(feature.tensors, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [LITE0, CONVNEXT, "timm:resnet18", "timm:mobilenetv3_small_050"])
def test_timm_maps_equal_timm_in_evaluation(name):
    reference = timm.create_model(name.removeprefix("timm:"), pretrained=False, features_only=True).eval()
    backbone = build(name, multi_scale=True)
    randomize(backbone)
    mismatch = reference.load_state_dict(backbone.body.state_dict(), strict=False)
    assert not mismatch.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in mismatch.missing_keys)
    images = unequal_images(*SIZES)
    images = NestedTensor(images.tensors.double(), images.mask)
    with torch.no_grad():
        for feature, wanted in zip(backbone.double()(images), reference.double()(images.tensors)[-3:], strict=True):
            torch.testing.assert_close(feature.tensors, wanted)  # rtol 1e-7


@pytest.mark.parametrize("name", ["resnet18", LITE0, "timm:resnet18"])
def test_batch_norms_are_frozen(name):
    backbone = build(name, multi_scale=True)
    randomize(backbone)
    norms = [module for module in backbone.modules() if hasattr(module, "running_mean")]
    assert len(norms) >= 20
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())

    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = NestedTensor(3 + 2 * torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool))
    backbone.train()
    training = backbone(images)
    sum(feature.tensors.sum() for feature in training).backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    backbone.eval()
    for feature, wanted in zip(training, backbone(images), strict=True):
        torch.testing.assert_close(feature.tensors, wanted.tensors)


@pytest.mark.parametrize(
    ("name", "options", "frozen"),
    [
        ("resnet18", {}, ("body.conv1.", "body.layer1.")),
        ("resnet50", {"multi_scale": True, "dilation": True}, ("body.conv1.", "body.layer1.")),
        (LITE0, {}, ("body.conv_stem.", "body.blocks.0.", "body.blocks.1.")),
        (LITE0, {"feature_stride": 16}, ("body.conv_stem.", "body.blocks.0.", "body.blocks.1.")),
        (CONVNEXT, {"multi_scale": True}, ("body.stem_", "body.stages_0.")),
        (REGNET, {}, ("body.stem.", "body.s1.")),
    ],
)
def test_stem_and_first_stage_are_frozen_and_the_rest_is_trained(name, options, frozen):
    backbone = build(name, **options)
    sum(feature.tensors.square().sum() for feature in backbone(unequal_images(*SIZES))).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_an_untrained_backbone_requires_no_gradients(name):
    assert not any(parameter.requires_grad for parameter in build(name, trainable=False).parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, r"--backbone resnet51: choose one of resnet18, .*timm:NAME"),
        ("resnet18", {"dilation": True}, r"--dilation: resnet18 has no dilated form; use resnet50"),
        ("resnet34", {"dilation": True}, r"--dilation: resnet34 has no dilated form; use resnet50"),
        (LITE0, {"dilation": True}, r"--dilation .* --feature_stride 16"),
        ("resnet50", {"feature_stride": 16}, r"--feature_stride is for timm backbones"),
        (LITE0, {"feature_stride": 16, "multi_scale": True}, r"--feature_stride chooses one map"),
        (LITE0, {"feature_stride": 64}, r"no map of stride 64 \(--feature_stride\), only of 2, 4, 8, 16, 32"),
        ("timm:no_such_model", {}, r"--backbone timm:no_such_model: timm .* has no such model"),
        ("timm:resnet18.no_such_tag", {}, r"--backbone timm:resnet18.no_such_tag: .*tag"),
        ("timm:hf-hub:someone/something", {}, r"has no such model"),  # would be downloaded
        ("timm:vit_tiny_patch16_224", {}, r"images of one size only"),
        ("timm:hrnet_w18_small", {}, r"cannot take images of any size"),
    ],
)
def test_refusals_name_the_flag(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


def test_normalization():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert backbone_normalization("resnet50") == imagenet
    assert backbone_normalization("timm:resnet18") == imagenet
    assert backbone_normalization(LITE0) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="--backbone timm:nothing"):
        backbone_normalization("timm:nothing")


@pytest.mark.parametrize(
    ("layout", "name", "dilation"),
    [("detr-r50", "resnet50", False), ("detr-r101", "resnet101", False), ("detr-r50-dc5", "resnet50", True)],
)
def test_names_and_shapes_are_those_of_public_checkpoints(real_data, layout, name, dilation):
    public = json.loads((real_data / "layouts" / f"{layout}.json").read_text())
    own = {f"backbone.0.{key}": list(value.shape) for key, value in build(name, dilation=dilation).state_dict().items()}
    assert own == {key: shape for key, shape in public.items() if key.startswith("backbone.0.")}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_random_activations_do_not_explode(name):
    """Frozen batch norms that are still the identity hold nothing back."""
    images = NestedTensor(torch.randn(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool))
    backbone = build_backbone(name=name, multi_scale=True, dilation=False, feature_stride=None, trainable=False)
    for level in backbone(images):
        assert 0.03 < level.tensors.std() < 3
