"""Dropout against its definition and, where it drops attention weights, against weights that are read off."""

import math

import pytest
import torch
from torch import nn

from models.fast.dropout import Dropout
from models.layers import ProjectedAttention
from tests.models.detectors import small_config

N = 1_000_003  # not a multiple of four


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_an_element_is_zeroed_with_probability_p_and_else_divided_by_the_rest(p: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(N) + 1
    y = Dropout(p)(x)
    dropped = y == 0
    assert abs(int(dropped.sum()) - N * p) < 5 * math.sqrt(N * p * (1 - p))
    torch.testing.assert_close(y[~dropped], x[~dropped] / (1 - p), rtol=1e-3, atol=0.0)


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(N)) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 256, 1000):
        correlation = float((dropped[:-distance] * dropped[distance:]).mean()) * 4
        assert abs(correlation) < 5 / math.sqrt(N)


def test_the_gradient_passes_where_the_element_does() -> None:
    x = torch.rand(1000, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_in_place_it_does_the_same(p: float, training: bool) -> None:
    dropout = Dropout(p).train(training)
    torch.manual_seed(0)
    x = torch.randn(40, 50, dtype=torch.float64)
    state = torch.get_rng_state()
    expected = dropout(x)
    torch.set_rng_state(state)
    assert torch.equal(dropout.drop_(x), expected)
    assert torch.equal(x, expected)


def test_numbers_follow_the_random_state_of_torch() -> None:
    dropout, x = Dropout(0.5), torch.ones(4, 250)
    state = torch.get_rng_state()
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)


@pytest.mark.parametrize("p", [0.0, 1 - 1e-9])
def test_extreme_probabilities_stay_finite(p: float) -> None:
    assert Dropout(p)(torch.ones(1000)).isfinite().all()


def test_evaluation_and_empty_input_pass_through() -> None:
    x = torch.rand(5)
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.9)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    assert Dropout(0.5)(torch.ones(8, dtype=dtype)).dtype == dtype


def test_compiled_dropout_drops_too() -> None:
    torch.manual_seed(0)
    y = torch.compile(Dropout(0.5), fullgraph=True, backend="aot_eager")(torch.ones(10_000))
    assert y.unique().tolist() == [0.0, 2.0]


def test_attention_drops_weights_and_leaves_padding_out() -> None:
    """Values that are unit vectors show the weights; each is the softmax's over 1 - p, or dropped."""
    torch.manual_seed(0)
    batch, keys, p = 2, 16, 0.25
    attention = ProjectedAttention(small_config(d_model=keys, nhead=1, dropout=p)).double()
    nn.init.eye_(attention.out_proj.weight)
    query, key = torch.randn(batch, 500, 8, dtype=torch.float64), torch.randn(batch, keys, 8, dtype=torch.float64)
    value = torch.eye(keys, dtype=torch.float64).expand(batch, -1, -1)
    padding = torch.arange(keys) >= torch.tensor([[keys], [5]])  # the second image ends after five positions
    weights = attention(query, key, value, key_padding_mask=padding)
    scores = (query @ key.mT / math.sqrt(8)).masked_fill(padding[:, None], -math.inf)
    expected = scores.softmax(-1)
    kept = weights != 0
    torch.testing.assert_close(weights[kept], expected[kept] / (1 - p))
    share = float(kept[expected > 0].double().mean())
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / (expected > 0).sum())
    assert not kept[1, :, 5:].any()
