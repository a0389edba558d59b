"""What counts as an operation."""

import torch

from tools.launches import count_launches


def test_views_and_allocations_are_none():
    x, w = torch.randn(4, 3, 5), torch.randn(6, 5)

    def work():
        y = torch.nn.functional.linear(x, w)  # for three dimensions a product of matrices between views
        return y.transpose(0, 1).relu().reshape(-1), torch.empty(3)  # which cannot be seen as one row: it is copied

    assert count_launches(work, torch.device("cpu")) == {"aten::mm": 1, "aten::relu": 1, "aten::clone": 1}


def test_gradients_count():
    w = torch.randn(6, 5, requires_grad=True)
    assert count_launches(lambda: w.exp().sum().backward(), torch.device("cpu"))["aten::mul"] == 1
