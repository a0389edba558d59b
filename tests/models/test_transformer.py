"""Attention, encoders and decoders; agreement with a whole independent detector is in test_hf_oracle.py."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from models.conditional_transformer import build_conditional_transformer, concatenate_heads, sine_embedding
from models.dab_transformer import DabTransformer, anchor_embedding
from models.deformable_transformer import DeformableTransformer
from models.interface import Decoded, Memory
from models.layers import MLP, MultiheadAttention, TransformerConfig
from models.transformer import Transformer, TransformerDecoderLayer, TransformerEncoderLayer, build_transformer
from tests.models.detectors import randomize, small_config, without_gradient

WIDTH, QUERIES, HEIGHT, WIDE = small_config().d_model, 5, 3, 4


def dab_with_heads(config: TransformerConfig) -> Transformer:
    """DAB-DETR's decoder needs the box head."""
    transformer = DabTransformer(config)
    transformer.make_heads(nn.Linear(config.d_model, 2), MLP(config.d_model, config.d_model, 4, 3))
    return transformer


def with_pre_norm(build: Callable[[TransformerConfig], Transformer]) -> Callable[[TransformerConfig], Transformer]:
    return lambda config: build(replace(config, pre_norm=True))


BUILDERS = {
    "vanilla": build_transformer,
    "vanilla pre-norm": with_pre_norm(build_transformer),
    "conditional": build_conditional_transformer,
    "conditional pre-norm": with_pre_norm(build_conditional_transformer),
    "deformable": partial(DeformableTransformer, num_levels=1, enc_n_points=3, dec_n_points=2),
    "dab": dab_with_heads,
}


@pytest.fixture(params=BUILDERS)
def transformer(request: pytest.FixtureRequest) -> Transformer:
    """Two layers each, in double precision so that differences are errors and not rounding."""
    return small_transformer(request.param)


def small_transformer(detr: str, layers: int = 2, dropout: float = 0.0) -> Transformer:
    transformer = BUILDERS[detr](small_config(num_encoder_layers=layers, num_decoder_layers=layers, dropout=dropout))
    randomize(transformer)
    return transformer.double().eval()


def share_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """The same random weights in both, under the same names."""
    randomize(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def padded_level() -> tuple[Tensor, Tensor, Tensor]:
    """Map, mask and position encoding of two images, 3x4 and 2x3, padded to 3x4."""
    level, pos = torch.randn(2, 2, WIDTH, HEIGHT, WIDE, dtype=torch.float64)
    mask = torch.ones(2, HEIGHT, WIDE, dtype=torch.bool)
    mask[0] = False
    mask[1, :2, :3] = False
    return level, mask, pos


def random_queries(transformer: Transformer, batch_size: int = 2) -> Tensor:
    return torch.randn(batch_size, QUERIES, transformer.query_dim, dtype=torch.float64)


def run(transformer: Transformer, level: Tensor, mask: Tensor, pos: Tensor, queries: Tensor) -> tuple[Memory, Decoded]:
    memory = transformer.encode([level], [mask], [pos])
    return memory, transformer.decode(memory, queries)


def test_mlp_has_relu_between_layers_only() -> None:
    mlp = MLP(1, 2, 1, 2)
    state = {
        "layers.0.weight": torch.tensor([[1.0], [-1.0]]),
        "layers.0.bias": torch.zeros(2),
        "layers.1.weight": torch.tensor([[1.0, -2.0]]),
        "layers.1.bias": torch.tensor([-10.0]),
    }
    mlp.load_state_dict(state)
    torch.testing.assert_close(mlp(torch.tensor([[3.0], [-3.0]])), torch.tensor([[-7.0], [-16.0]]))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch_with_the_same_state_dict(masked: bool) -> None:
    ours, theirs = MultiheadAttention(small_config()), nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    share_weights(ours, theirs)
    query, key, value = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = masked
    attn_mask = torch.rand(5, 7) < 0.4
    attn_mask[:, 0] = False
    masks = {"key_padding_mask": padding, "attn_mask": attn_mask} if masked else {}
    expected, _ = theirs(query, key, value, **masks)
    torch.testing.assert_close(ours(query, key, value, **masks), expected, atol=1e-6, rtol=0)
    for name, mask in masks.items():
        expected, _ = theirs(query, key, value, **{name: mask})
        torch.testing.assert_close(ours(query, key, value, **{name: mask}), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_without_positions_equals_torch(pre_norm: bool) -> None:
    ours = TransformerEncoderLayer(small_config(pre_norm=pre_norm))
    theirs = nn.TransformerEncoderLayer(WIDTH, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm)
    share_weights(ours, theirs)
    src, padding = torch.randn(2, 7, WIDTH), torch.arange(7) >= torch.tensor([[7], [4]])
    expected = theirs(src, src_key_padding_mask=padding)
    torch.testing.assert_close(ours(src, torch.zeros(()), padding), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_without_positions_equals_torch(pre_norm: bool) -> None:
    ours = TransformerDecoderLayer(small_config(pre_norm=pre_norm))
    theirs = nn.TransformerDecoderLayer(WIDTH, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm)
    share_weights(ours, theirs)
    tgt, tokens = torch.randn(2, QUERIES, WIDTH), torch.randn(2, 7, WIDTH)
    padding, query_mask = torch.arange(7) >= torch.tensor([[7], [4]]), torch.ones(QUERIES, QUERIES).triu(1).bool()
    memory = Memory(tokens, padding, torch.zeros_like(tokens), [(1, 7)])
    expected = theirs(tgt, tokens, tgt_mask=query_mask, memory_key_padding_mask=padding)
    torch.testing.assert_close(ours(tgt, torch.zeros(()), memory, tokens, query_mask), expected, atol=1e-5, rtol=0)


def test_sine_embedding_by_hand() -> None:
    """Eight features: y then x, each sin and cos at frequency 2 pi, then at 2 pi / 10000^(2/4)."""
    x, y = 0.25, 0.5
    angles = [2 * math.pi * y, 2 * math.pi * y / 100, 2 * math.pi * x, 2 * math.pi * x / 100]
    expected = [function(angle) for angle in angles for function in (math.sin, math.cos)]
    torch.testing.assert_close(sine_embedding(torch.tensor([[x, y]]), 8), torch.tensor([expected]))


def test_anchor_embedding_by_hand() -> None:
    """Of width 4 per coordinate: y, x, w, h, each sin and cos at frequency 2 pi, then at 2 pi / 10000^(2/4)."""
    x, y, w, h = 0.25, 0.5, 0.125, 0.75
    angles = [2 * math.pi * value / divisor for value in (y, x, w, h) for divisor in (1, 100)]
    expected = [function(angle) for angle in angles for function in (math.sin, math.cos)]
    torch.testing.assert_close(anchor_embedding(torch.tensor([x, y, w, h]), 8), torch.tensor(expected))


def test_dab_detr_starts_from_its_anchors_and_contents() -> None:
    """The first layer's boxes are the queries themselves, zeros are the content that is not given."""
    transformer = small_transformer("dab")
    level, mask, pos = padded_level()
    queries, content = random_queries(transformer), torch.randn(2, QUERIES, WIDTH, dtype=torch.float64)
    memory, decoded = run(transformer, level, mask, pos, queries)
    torch.testing.assert_close(decoded.reference[0], queries)
    empty = transformer.decode(memory, transformer.with_content(queries, torch.zeros_like(content)))
    torch.testing.assert_close(empty.hidden, decoded.hidden)
    filled = transformer.decode(memory, transformer.with_content(queries, content))
    torch.testing.assert_close(filled.reference[0], queries)
    assert (filled.hidden - decoded.hidden).abs().amax(-1).min() > 1e-2


def test_concatenate_heads_keeps_heads_together() -> None:
    content, position = torch.tensor([[[1, 2, 3, 4]]]), torch.tensor([[[5, 6, 7, 8]]])
    assert concatenate_heads(content, position, 2).tolist() == [[[1, 2, 5, 6, 3, 4, 7, 8]]]


def test_shapes(transformer: Transformer) -> None:
    level, mask, pos = padded_level()
    memory, decoded = run(transformer, level, mask, pos, random_queries(transformer))
    assert memory.tokens.shape == memory.pos.shape == (2, HEIGHT * WIDE, WIDTH)
    assert memory.shapes == [(HEIGHT, WIDE)]
    torch.testing.assert_close(memory.mask, mask.flatten(1))
    level_embed = getattr(transformer, "level_embed", torch.zeros(1, 1))[0]
    torch.testing.assert_close(memory.pos[1, 6], pos[1, :, 1, 2] + level_embed)  # position 6 is row 1, column 2
    assert decoded.hidden.shape == (2, 2, QUERIES, WIDTH)
    if transformer.has_reference:
        assert decoded.reference is not None
        assert decoded.reference.shape in [(2, QUERIES, 2), (2, 2, QUERIES, 4)]  # points, or boxes of each layer
    else:
        assert decoded.reference is None


@pytest.mark.parametrize("garbage", [1e6, float("inf"), float("nan")])
def test_what_stands_at_padded_positions_changes_nothing(transformer: Transformer, garbage: float) -> None:
    level, mask, pos = padded_level()
    queries = random_queries(transformer)
    memory, decoded = run(transformer, level, mask, pos, queries)
    spoilt = torch.where(mask[:, None], garbage, level)
    spoilt_memory, spoilt_decoded = run(transformer, spoilt, mask, pos + 100 * mask[:, None], queries)
    torch.testing.assert_close(spoilt_memory.tokens[~memory.mask], memory.tokens[~memory.mask], atol=1e-10, rtol=0)
    torch.testing.assert_close(spoilt_decoded.hidden, decoded.hidden, atol=1e-10, rtol=0)


def test_valid_positions_do_matter(transformer: Transformer) -> None:
    """The counterpart of the test above: one changed valid position is noticed by both encoder and decoder."""
    level, mask, pos = padded_level()
    queries = random_queries(transformer)
    memory, decoded = run(transformer, level, mask, pos, queries)
    changed = level.clone()
    changed[1, :, 1, 2] += torch.randn(WIDTH, dtype=torch.float64)  # a constant would vanish in pre-norm
    changed_memory, changed_decoded = run(transformer, changed, mask, pos, queries)
    assert (changed_memory.tokens[1, 0] - memory.tokens[1, 0]).abs().max() > 1e-3
    assert (changed_decoded.hidden[-1, 1] - decoded.hidden[-1, 1]).abs().max() > 1e-3
    torch.testing.assert_close(changed_decoded.hidden[:, 0], decoded.hidden[:, 0], atol=1e-12, rtol=0)


def test_positions_matter(transformer: Transformer) -> None:
    level, mask, pos = padded_level()
    queries = random_queries(transformer)
    _, decoded = run(transformer, level, mask, pos, queries)
    _, moved = run(transformer, level, mask, pos.flip(-1), queries)
    assert (moved.hidden - decoded.hidden).abs().max() > 1e-3


def test_batch_equals_single_images_without_padding(transformer: Transformer) -> None:
    level, mask, pos = padded_level()
    queries = random_queries(transformer)
    _, together = run(transformer, level, mask, pos, queries)
    for image, (height, width) in enumerate([(HEIGHT, WIDE), (2, 3)]):
        single = [x[image : image + 1, ..., :height, :width] for x in (level, mask, pos)]
        _, alone = run(transformer, *single, queries[image : image + 1])
        torch.testing.assert_close(alone.hidden[:, 0], together.hidden[:, image], atol=1e-10, rtol=0)


def test_decoding_subset_of_layers_is_a_prefix() -> None:
    """Entry l of ``hidden`` is the normalised output of layer l; a decoder cut after it ends there."""
    for detr in BUILDERS:
        transformer = small_transformer(detr, layers=3)
        level, mask, pos = padded_level()
        queries = random_queries(transformer)
        memory, _ = run(transformer, level, mask, pos, queries)
        decoded = transformer.decode(memory, queries)
        transformer.decoder.layers = transformer.decoder.layers[:2]
        torch.testing.assert_close(transformer.decode(memory, queries).hidden, decoded.hidden[:2])
        assert (decoded.hidden[1] - decoded.hidden[2]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("detr", "layers"), [*((name, 2) for name in BUILDERS if name != "deformable"), ("deformable", 1)]
)
def test_query_mask_blocks_exactly_what_it_says(detr: str, layers: int) -> None:
    """Query i depends on j iff it may attend to it, once the queries were mixed.

    The decoders that start from zeros have equal values in the first layer: they mix in the second.
    """
    transformer = small_transformer(detr, layers=layers)
    query_mask = torch.tensor(
        [
            [0, 1, 0, 0, 1],
            [0, 0, 1, 1, 1],
            [1, 1, 0, 1, 1],
            [0, 0, 0, 0, 0],
            [1, 0, 1, 0, 1],  # not even to itself, yet its own residual stays
        ]
    ).bool()
    level, mask, pos = padded_level()
    memory = transformer.encode([level], [mask], [pos])
    jacobian = torch.autograd.functional.jacobian(
        lambda queries: transformer.decode(memory, queries, query_mask).hidden[-1], random_queries(transformer)
    )  # [B, Q, C, B, Q, C]
    influence = jacobian.abs().amax(dim=(2, 5))  # [B, Q, B, Q]
    for image in range(2):
        depends = ~query_mask | torch.eye(QUERIES, dtype=torch.bool)
        assert torch.equal(influence[image, :, image] > 1e-6, depends)
        assert influence[image, :, image][~depends].max() < 1e-12
        assert (influence[image, :, 1 - image] == 0).all()


def test_open_query_mask_is_no_mask(transformer: Transformer) -> None:
    level, mask, pos = padded_level()
    queries = random_queries(transformer)
    memory, decoded = run(transformer, level, mask, pos, queries)
    opened = transformer.decode(memory, queries, torch.zeros(QUERIES, QUERIES, dtype=torch.bool))
    torch.testing.assert_close(opened.hidden, decoded.hidden, atol=1e-12, rtol=0)


@pytest.mark.parametrize("detr", ["conditional", "conditional pre-norm", "deformable"])
def test_reference_depends_on_own_query_alone(detr: str) -> None:
    transformer = small_transformer(detr)
    level, mask, pos = padded_level()
    queries = random_queries(transformer)
    _, decoded = run(transformer, level, mask, pos, queries)
    _, other_image = run(transformer, torch.randn_like(level), mask, pos, queries)
    torch.testing.assert_close(other_image.reference, decoded.reference)
    assert decoded.reference.std(dim=1).min() > 0.01


def test_gradients_reach_every_parameter(transformer: Transformer) -> None:
    level, mask, pos = padded_level()
    queries = random_queries(transformer).requires_grad_()
    _, decoded = run(transformer, level.requires_grad_(), mask, pos, queries)
    loss = (decoded.hidden * torch.randn_like(decoded.hidden)).sum()
    if decoded.reference is not None:
        loss = loss + decoded.reference.sum()
    loss.backward()
    assert queries.grad.abs().amin(dim=-1).min() > 0
    assert (level.grad.abs().amax(dim=1) > 1e-8).equal(~mask)
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None, name
        if not without_gradient(name, pre_norm="encoder.norm.weight" in transformer.state_dict()):
            assert parameter.grad.abs().max() > 1e-8, name


def test_dropout_only_in_training() -> None:
    for detr in BUILDERS:
        transformer = small_transformer(detr, dropout=0.5)
        level, mask, pos = padded_level()
        queries = random_queries(transformer)
        hidden = [run(transformer, level, mask, pos, queries)[1].hidden for _ in range(2)]
        assert torch.equal(*hidden)
        transformer.train()
        hidden = [run(transformer, level, mask, pos, queries)[1].hidden for _ in range(2)]
        assert (hidden[0] - hidden[1]).abs().max() > 1e-2


def test_initial_weights_are_xavier_uniform() -> None:
    """The bound of Xavier's uniform distribution, also for the fused in_proj_weight, as in the public code."""
    for build in BUILDERS.values():
        transformer = build(small_config(d_model=64, dim_feedforward=96))
        for name, parameter in transformer.named_parameters():
            chosen_by_attention = ("sampling_offsets.weight", "attention_weights.weight", "level_embed")
            if parameter.dim() > 1 and not name.endswith(chosen_by_attention) and "bbox_embed" not in name:
                bound = math.sqrt(6 / sum(parameter.shape))
                assert 0.9 * bound < parameter.abs().max() <= bound, name
