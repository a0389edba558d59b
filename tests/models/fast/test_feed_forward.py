"""The feed-forward in pieces against its definition, and its gradients against finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.fast import feed_forward
from models.layers import TransformerLayer
from tests.models.detectors import small_config

NAMES = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")


def _layer(dropout: float) -> TransformerLayer:
    torch.manual_seed(0)
    return TransformerLayer(small_config(d_model=6, dim_feedforward=10, dropout=dropout)).double()


def _as_defined(layer: TransformerLayer, x: Tensor) -> Tensor:
    return layer.linear2(layer.dropout(torch.relu(layer.linear1(x))))


def _results(function: Callable[[Tensor], Tensor], layer: TransformerLayer, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    output = function(x)
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    return [output, *torch.autograd.grad(loss, [x, *(layer.get_parameter(name) for name in NAMES)])]


@pytest.mark.parametrize(("dropout", "piece"), [(0.0, 4), (0.3, 100)])
def test_output_and_gradients_are_those_of_the_definition(
    dropout: float, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout in pieces of four tokens; with it in one, since each piece draws numbers of its own."""
    monkeypatch.setattr(feed_forward, "TOKENS_AT_ONCE", piece)
    layer = _layer(dropout)
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    actual = _results(layer.feed_forward, layer, x)
    expected = _results(lambda x: _as_defined(layer, x), layer, x)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert other.abs().max() > 0


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_forward, "TOKENS_AT_ONCE", 3)
    layer = _layer(0.3).train(training)

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        return feed_forward._FeedForward.apply(x, *parameters, layer.dropout, True)

    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *(layer.get_parameter(name) for name in NAMES)))


def test_every_piece_draws_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_forward, "TOKENS_AT_ONCE", 2)
    layer = _layer(0.5)
    first, second = layer.feed_forward(torch.ones(1, 4, 6, dtype=torch.float64)).split(2, dim=1)
    assert not torch.equal(first, second)


def test_without_gradients_the_output_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_forward, "TOKENS_AT_ONCE", 3)
    layer = _layer(0.3).eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer.feed_forward(x), _as_defined(layer, x))


def test_without_tokens_nothing_comes_out() -> None:
    layer = _layer(0.1)
    assert layer.feed_forward(torch.empty(1, 0, 6, dtype=torch.float64)).shape == (1, 0, 6)


@pytest.mark.parametrize("frozen", NAMES)
def test_a_frozen_parameter_gets_no_gradient(frozen: str) -> None:
    layer = _layer(0.1)
    layer.get_parameter(frozen).requires_grad_(False)
    layer.feed_forward(torch.randn(1, 5, 6, dtype=torch.float64)).sum().backward()
    assert {name for name in NAMES if layer.get_parameter(name).grad is not None} == set(NAMES) - {frozen}
