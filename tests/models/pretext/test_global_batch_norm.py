"""The statistics of the global batch against ``nn.BatchNorm1d`` on the whole batch in one process."""

import torch
from torch import nn

from models.pretext.global_batch_norm import GlobalBatchNorm1d
from tests.gloo import run_processes


def _trained_on(x: torch.Tensor, weight: torch.Tensor, norm: nn.Module) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    output = norm(x)
    (output * weight).sum().backward()
    return {
        "output": output.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean.clone(),
        "var": norm.running_var.clone(),
        "count": norm.num_batches_tracked.clone(),
    }


def _half(rank: int, x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = slice(rank * len(x) // 2, (rank + 1) * len(x) // 2)
    return _trained_on(x[rows], weight[rows], GlobalBatchNorm1d(x.shape[1]))


def test_two_processes_equal_one_with_the_whole_batch():
    # a mean far from zero would show a variance by E[x^2] - E[x]^2
    x, weight = torch.randn(6, 5) + 100, torch.randn(6, 5)
    whole = _trained_on(x, weight, nn.BatchNorm1d(5))
    halves = run_processes(_half, x, weight)
    for name in ("output", "x"):
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), whole[name], rtol=1e-4, atol=1e-4)
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(half[name] for half in halves), whole[name], rtol=1e-4, atol=1e-4)
    for half in halves:
        for name in ("mean", "var", "count"):
            torch.testing.assert_close(half[name], whole[name])


def test_one_process_is_batch_norm():
    x, weight = torch.randn(6, 5), torch.randn(6, 5)
    ours = _trained_on(x, weight, GlobalBatchNorm1d(5))
    for name, value in _trained_on(x, weight, nn.BatchNorm1d(5)).items():
        assert torch.equal(ours[name], value), name


def test_evaluation_uses_the_running_statistics():
    norm = GlobalBatchNorm1d(3).eval()
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    torch.testing.assert_close(norm(torch.full((1, 3), 6.0)), torch.full((1, 3), 2.0))
