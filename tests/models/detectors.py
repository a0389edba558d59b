"""Small detectors, images and random weights for tests."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor, nn

from models import DETECTORS
from models.detr import DETR
from models.layers import TransformerConfig
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

NUM_LOGITS = 6
SMALL_FLAGS = {"enc_n_points": 3, "dec_n_points": 2}
"""Flags of single detectors that are other than their defaults."""


def small_args(detr: str, **changes: object) -> argparse.Namespace:
    """Arguments of a detector small enough for a unit test."""
    defaults = {
        "detr": detr,
        "backbone": "resnet18",
        "dilation": False,
        "feature_stride": None,
        "position_embedding": "sine",
        "max_size": 640,
        "hidden_dim": 32,
        "nheads": 4,
        "enc_layers": 2,
        "dec_layers": 3,
        "dim_feedforward": 48,
        "dropout": 0.0,
        "num_queries": 7,
    }
    own = {flag.name: SMALL_FLAGS.get(flag.name, flag.default) for flag in DETECTORS[detr].flags}
    return argparse.Namespace(**{**defaults, **own, **changes})


def small_config(**changes: int | float | bool) -> TransformerConfig:
    """Sizes of a Transformer small enough for a unit test, without dropout."""
    config = TransformerConfig(
        d_model=16, nhead=4, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=24, dropout=0.0
    )
    return replace(config, **changes)


def small_detector(detr: str, *, train_backbone: bool = True, **changes: object) -> DETR:
    """A small detector in evaluation mode whose weights, zero-initialised ones included, are all random."""
    args = small_args(detr, **changes)
    detector = build(args, NUM_LOGITS, train_backbone=train_backbone)
    randomize(detector)
    return detector.eval()


def build(
    args: argparse.Namespace, num_logits: int, *, classification: str | None = None, train_backbone: bool = True
) -> DETR:
    """The detector of ``args`` with initial weights; default classification: that of its record."""
    record = DETECTORS[args.detr]
    classification = classification or record.classification
    return record.build(args, num_logits, classification=classification, train_backbone=train_backbone)


def queries_of_regions(learned: Tensor, content: Tensor) -> Tensor:
    """Learned queries [N, Q, D] that ask for regions with these contents [N, Q, C], by hand.

    DAB-DETR's decoder starts from the contents, the others' positions are the sum.
    """
    if learned.shape[-1] == 4:
        return torch.cat([learned, content], dim=-1)
    width = content.shape[-1]
    return torch.cat([learned[..., :width] + content, learned[..., width:]], dim=-1)


def unequal_images(*sizes: tuple[int, int]) -> NestedTensor:
    """Random normalised images of the given heights and widths, padded to a batch."""
    return nested_tensor_from_tensor_list([torch.randn(3, *size) for size in sizes])


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Give every parameter and batch norm statistic a random value of sensible size, in place.

    Initial values hide errors: biases and the last box layer are 0, norms are the identity. Weights keep the
    variance of what passes through them; queries are large, or random layers would soon make them all alike, but for
    anchor boxes, of width 4, whose size divides.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if id(value) in embeddings:
            value.normal_(std=1 if value.shape[1] == 4 else 4)
        else:
            value.copy_(_random_like(name, value))


def _random_like(name: str, value: Tensor) -> Tensor:
    if name.endswith("running_var"):
        return torch.rand_like(value) + 0.5
    if name.endswith("running_mean"):
        return 0.3 * torch.randn_like(value)
    if value.dim() > 1:
        fan_in = value[0].numel()
        return torch.randn_like(value) / fan_in**0.5
    if name.endswith("weight"):  # of a norm
        return torch.rand_like(value) + 0.5
    return 0.1 * torch.randn_like(value)


def without_gradient(name: str, *, pre_norm: bool = False) -> bool:
    """Whether the gradient of a parameter of a Transformer is 0 by construction.

    The decoder embeddings start as zeros, so that the values of the first self-attention are all equal: whatever
    chooses among them does nothing. A norm in front of them multiplies zeros. And a constant added to all keys does
    nothing to a softmax.
    """
    if pre_norm and name == "decoder.layers.0.norm1.weight":
        return True
    first_self_attention = (
        "decoder.layers.0.self_attn.in_proj_weight",
        "decoder.layers.0.sa_q",
        "decoder.layers.0.sa_k",
    )
    key_bias = ("sa_kcontent_proj.bias", "sa_kpos_proj.bias", "ca_kcontent_proj.bias", "ca_kpos_proj.bias")
    return name.startswith(first_self_attention) or name.endswith((*key_bias, "decoder.layers.0.sa_v_proj.weight"))
