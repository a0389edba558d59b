"""Any convolutional model of timm as the body of a backbone, with frozen batch norms."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from util.errors import UserError
from util.optional import require

FROZEN_STRIDE = 4
"""Stem and stages up to this stride are not trained, like conv1 and layer1 of a ResNet in DETR."""


def build_timm_body(name: str, strides: list[int]) -> tuple[nn.Module, list[int]]:
    """A model with random weights, cut off after the last map that is needed; it downloads nothing.

    Parameters have timm's names. In most models that return features, timm itself turns ``stages.0`` into ``stages_0``.

    Args:
        name: a model of timm, with or without the tag of its weights.
        strides: of the maps to return, ascending.

    Returns:
        The body, [B, 3, H, W] -> list of maps [B, K_l, H_l, W_l], and K_l of each map.

    Raises:
        UserError: timm is not installed or does not know the model, or the model cannot be a backbone here.
    """
    available = _create(name).feature_info.info
    out_indices = maps_of_strides(name, strides)
    body = _create(name, out_indices=tuple(out_indices))
    _drop_after(body, available[out_indices[-1]]["module"])
    body = require("timm.layers", "timm").freeze_batch_norm_2d(body)
    unfrozen = next((type(module).__name__ for module in body.modules() if isinstance(module, _BatchNorm)), None)
    if unfrozen is not None:
        raise UserError(f"--backbone timm:{name}: its {unfrozen} cannot be frozen; choose another backbone")
    shallow = [info["module"] for info in available if info["reduction"] <= FROZEN_STRIDE]
    if shallow:
        _freeze_up_to(body, shallow[-1])
    num_channels = [available[index]["num_chs"] for index in out_indices]
    _try_out(name, body, num_channels)
    return body, num_channels


def maps_of_strides(name: str, strides: list[int]) -> list[int]:
    """For each stride, the index of the last map with it among all maps of the model.

    Raises:
        UserError: the model has no map of a stride; or as :func:`build_timm_body`.
    """
    last_of = {stride: index for index, stride in enumerate(strides_of_maps(name))}
    missing = [stride for stride in strides if stride not in last_of]
    if missing:
        raise UserError(
            f"--backbone timm:{name} has no map of stride {missing[0]} (--feature_stride), "
            f"only of {', '.join(map(str, last_of))}"
        )
    return [last_of[stride] for stride in strides]


def strides_of_maps(name: str) -> list[int]:
    """The stride of every map that the model returns."""
    return [info["reduction"] for info in _create(name).feature_info.info]


def timm_normalization(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB in [0, 1] that the model's published weights expect.

    Raises:
        UserError: timm is not installed or does not know the model.
    """
    config = _pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def _pretrained_cfg(name: str) -> object:
    timm = require("timm", "timm", f"--backbone timm:{name}")
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name[:8]}*")[:3]
        hint = f", perhaps {' or '.join(similar)}?" if similar else "; see timm.list_models()"
        raise UserError(f"--backbone timm:{name}: timm {timm.__version__} has no such model{hint}")
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # unknown tag
        raise UserError(f"--backbone timm:{name}: {error}") from None


def _create(name: str, **options: object) -> nn.Module:
    if _pretrained_cfg(name).fixed_input_size:
        raise UserError(f"--backbone timm:{name} takes images of one size only; choose a convolutional model")
    timm = require("timm", "timm")
    try:
        body = timm.create_model(name, pretrained=False, features_only=True, **options)
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:  # each found among timm's models
        raise UserError(f"--backbone timm:{name}: timm cannot return feature maps of it ({error})") from None
    if getattr(body, "output_fmt", "NCHW") != "NCHW":
        raise UserError(f"--backbone timm:{name} returns no feature maps [B, C, H, W]; choose a convolutional model")
    return body


def _drop_after(body: nn.Module, last: str) -> None:
    """Remove the blocks after ``last`` from a Sequential; timm leaves them there in its EfficientNets.

    They would cost time, and their parameters would never get a gradient.
    """
    container, _, index = last.rpartition(".")
    blocks = getattr(body, container, None)
    if isinstance(blocks, nn.Sequential):
        setattr(body, container, blocks[: int(index) + 1])


@torch.no_grad()
def _try_out(name: str, body: nn.Module, num_channels: list[int]) -> None:
    """Run the body once on an image whose sides no stride divides; some models of timm cannot take it."""
    body.eval()
    try:
        shapes = [tuple(map_.shape) for map_ in body(torch.zeros(1, 3, 131, 193))]
    except RuntimeError as error:
        raise UserError(
            f"--backbone timm:{name} cannot take images of any size ({error}); choose another backbone"
        ) from None
    body.train()
    if [shape[1] for shape in shapes] != num_channels:
        raise UserError(f"--backbone timm:{name} returns maps of shapes {shapes}, not of {num_channels} channels")


def _freeze_up_to(body: nn.Module, last: str) -> None:
    """Freeze all submodules up to and including ``last``; they are registered in the order of the computation."""
    children = dict(body.named_children())
    flattened = last.replace(".", "_", 1)
    last = flattened if flattened.split(".")[0] in children else last
    reached = False
    for name, module in body.named_modules():
        inside = f"{name}.".startswith(f"{last}.")
        if reached and not inside:
            return
        reached = reached or inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
