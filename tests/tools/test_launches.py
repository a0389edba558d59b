"""What counts as an operation."""

from functools import partial

import torch
from torch.profiler import record_function

from tools.launches import REPLAY, REPLAYED, count_launches


def test_views_and_allocations_are_none():
    x, w = torch.randn(4, 3, 5), torch.randn(6, 5)

    def work():
        y = torch.nn.functional.linear(x, w)  # for three dimensions a product of matrices between views
        return y.transpose(0, 1).relu().reshape(-1), torch.empty(3)  # which cannot be seen as one row: it is copied

    assert count_launches(work, torch.device("cpu")) == {"aten::mm": 1, "aten::relu": 1, "aten::clone": 1}


def test_gradients_count():
    w = torch.randn(6, 5, requires_grad=True)
    assert count_launches(lambda: w.exp().sum().backward(), torch.device("cpu"))["aten::mul"] == 1


def test_a_replay_and_its_gradient_are_single_launches():
    w = torch.randn(6, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x.exp().sin().cos(), backend="aot_eager")

    def work(name: str):
        with record_function(name):
            y = compiled(w)
        compiled(y).backward(torch.ones(6))

    work("warm-up")
    recorded, other = (count_launches(partial(work, name), torch.device("cpu")) for name in (REPLAYED, "other"))
    assert [recorded[name] for name in REPLAY] == [2, 2]
    assert recorded["aten::exp"] == 1, "the second call is not replayed"
    assert other["aten::exp"] == 2
    assert not any(other[name] for name in REPLAY)
