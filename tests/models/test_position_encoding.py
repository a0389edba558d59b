"""Position encodings against transformers' DETR and against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrSinePositionEmbedding
from transformers.models.detr.modeling_detr import DetrLearnedPositionEmbedding, DetrSinePositionEmbedding

from models.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine, build_position_encoding
from util.errors import UserError
from util.nested_tensor import NestedTensor


def padded_map(dtype: torch.dtype = torch.float32) -> NestedTensor:
    """A map of two images: one fills it, the other is 4 x 3."""
    mask = torch.zeros(2, 6, 9, dtype=torch.bool)
    mask[1, 4:] = True
    mask[1, :, 3:] = True
    return NestedTensor(torch.zeros(2, 5, 6, 9, dtype=dtype), mask)


@pytest.mark.parametrize("features", [2, 10, 128])
def test_sine_equals_transformers(features):
    x = padded_map()
    reference = DetrSinePositionEmbedding(num_position_features=features, normalize=True, scale=2 * math.pi)
    wanted = reference(shape=x.tensors.shape, device=x.mask.device, dtype=torch.float32, mask=~x.mask)
    encoding = PositionEmbeddingSine(num_pos_feats=features)(x)
    assert encoding.shape == (2, 2 * features, 6, 9)
    torch.testing.assert_close(encoding, wanted, rtol=0, atol=1e-6)


def test_sine_at_pixel_centres_equals_deformable_transformers():
    x = padded_map()
    reference = DeformableDetrSinePositionEmbedding(num_position_features=10, normalize=True)
    wanted = reference(shape=x.tensors.shape, device=x.mask.device, dtype=torch.float32, mask=~x.mask)
    encoding = build_position_encoding("sine", 20, offset=0.5)
    torch.testing.assert_close(encoding(x), wanted, rtol=0, atol=1e-6)


def test_sine_equals_the_formula():
    encoding = PositionEmbeddingSine(num_pos_feats=4, temperature=100.0)(padded_map())
    # Position (2, 1) of the 4 x 3 image, counted from 1, of a full turn.
    row, column = 2 * math.pi * 3 / 4, 2 * math.pi * 2 / 3
    wanted = []
    for position in (row, column):
        for divisor in (1.0, 10.0):  # 100 ** (0 / 4) and 100 ** (2 / 4)
            wanted += [math.sin(position / divisor), math.cos(position / divisor)]
    torch.testing.assert_close(encoding[1, :, 2, 1], torch.tensor(wanted))


def test_sine_of_an_image_does_not_depend_on_padding():
    encoding = build_position_encoding("sine", 16)
    alone = NestedTensor(torch.zeros(1, 5, 4, 3), torch.zeros(1, 4, 3, dtype=torch.bool))
    torch.testing.assert_close(encoding(padded_map())[1, :, :4, :3], encoding(alone)[0])


def test_sine_is_computed_in_single_precision_whatever_the_map():
    encoding = build_position_encoding("sine", 64)
    half = encoding(padded_map(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, encoding(padded_map()).bfloat16())


def test_learned_equals_transformers():
    x = padded_map()
    reference = DetrLearnedPositionEmbedding(embedding_dim=7)
    encoding = PositionEmbeddingLearned(num_pos_feats=7)
    assert {name: tuple(value.shape) for name, value in encoding.state_dict().items()} == {
        "row_embed.weight": (50, 7),
        "col_embed.weight": (50, 7),
    }
    encoding.row_embed.load_state_dict(reference.row_embeddings.state_dict())
    encoding.col_embed.load_state_dict(reference.column_embeddings.state_dict())
    wanted = reference(shape=x.tensors.shape, device=x.mask.device, dtype=torch.float32)
    assert torch.equal(encoding(x), wanted)


def test_learned_begins_uniform_and_learns():
    encoding = build_position_encoding("learned", 256)
    for table in (encoding.row_embed.weight, encoding.col_embed.weight):
        assert 0 <= table.min() < 0.01
        assert 0.99 < table.max() <= 1
    encoding(padded_map()).sum().backward()
    assert encoding.row_embed.weight.grad[:6].eq(2 * 9).all()
    assert encoding.row_embed.weight.grad[6:].eq(0).all()
    assert encoding.col_embed.weight.grad[:9].eq(2 * 6).all()


@pytest.mark.parametrize(("height", "width"), [(51, 2), (2, 51)])
def test_learned_refuses_larger_maps(height, width):
    encoding = build_position_encoding("learned", 8)
    fits = NestedTensor(torch.zeros(1, 1, 50, 50), torch.zeros(1, 50, 50, dtype=torch.bool))
    assert encoding(fits).shape == (1, 8, 50, 50)
    large = NestedTensor(torch.zeros(1, 1, height, width), torch.zeros(1, height, width, dtype=torch.bool))
    with pytest.raises(UserError, match=rf"{height} x {width}; use --position_embedding sine"):
        encoding(large)
