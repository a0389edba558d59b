"""The feed-forward of a Transformer layer, a few tokens at a time on a CPU.

It is the widest part of a Transformer and does not mix tokens. In pieces, the hidden units between the linear layers
stay in the cache: with 10,000 tokens, forward and backward take a fifth less time, evaluation takes a quarter less.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.fast.dropout import Dropout, on_eager_cpu

TOKENS_AT_ONCE = 1024


def feed_forward(x: Tensor, linear1: nn.Linear, linear2: nn.Linear, dropout: Dropout) -> Tensor:
    """``linear2(dropout(relu(linear1(x))))`` of tokens [B, N, C] -> [B, N, C]."""
    # All tokens in one row: with more dimensions Linear returns a view, and after an in-place change of a view autograd
    # copies the whole gradient.
    tokens = x.flatten(0, -2)
    if not on_eager_cpu(x) or torch.is_autocast_enabled("cpu"):
        return linear2(dropout(F.relu(linear1(tokens), inplace=True))).view_as(x)
    parameters = (linear1.weight, linear1.bias, linear2.weight, linear2.bias)
    return _FeedForward.apply(tokens, *parameters, dropout, torch.is_grad_enabled()).view_as(x)


class _FeedForward(torch.autograd.Function):
    """``linear2(dropout(relu(linear1(x))))`` of tokens [N, C], and its gradients, a few tokens at a time.

    For the gradient it keeps the hidden units after the dropout: where one is zero, ReLU or dropout blocked it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        dropout: Dropout,
        with_gradient: bool,
    ) -> Tensor:
        output = x.new_empty(len(x), len(bias2))
        hidden = []
        for tokens, out in zip(x.split(TOKENS_AT_ONCE), output.split(TOKENS_AT_ONCE), strict=True):
            units = dropout.drop_(torch.addmm(bias1, tokens, weight1.t()).relu_())
            torch.addmm(bias2, units, weight2.t(), out=out)
            if with_gradient:
                hidden.append(units)
        ctx.save_for_backward(x, weight1, weight2, *hidden)
        ctx.scale = dropout.scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, *hidden = ctx.saved_tensors
        grad_x, grad_weight1, grad_weight2 = (torch.empty_like(x), torch.zeros_like(weight1), torch.zeros_like(weight2))
        grad_bias1 = weight1.new_zeros(len(weight1))
        pieces = zip(
            x.split(TOKENS_AT_ONCE), hidden, grad.split(TOKENS_AT_ONCE), grad_x.split(TOKENS_AT_ONCE), strict=True
        )
        for tokens, units, grad_out, grad_tokens in pieces:
            grad_units = grad_out @ weight2
            torch.ops.aten.threshold_backward.grad_input(grad_units, units, 0.0, grad_input=grad_units)
            grad_units.mul_(ctx.scale)
            grad_weight2.addmm_(grad_out.t(), units)
            grad_weight1.addmm_(grad_units.t(), tokens)
            grad_bias1.add_(grad_units.sum(0))
            torch.mm(grad_units, weight1, out=grad_tokens)
        return grad_x, grad_weight1, grad_bias1, grad_weight2, grad.sum(0), None, None
