"""The pretext tasks of one view on two processes."""

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.gloo import run_processes
from tests.models.pretext.cases import build, one_view_batch, rows_of

DETRS = ["vanilla", "conditional", "deformable", "dab"]
FLAGS = {"updetr": ["--num_regions", "3", "--patch_dropout", "0"], "detreg": []}
REGIONS = {"updetr": (3, 3, 3, 3), "detreg": (3, 1, 0, 5)}  # of the four images
TRAINED = {"updetr": {"detector", "patch2query", "feature_align"}, "detreg": {"detector", "feature_embed"}}
Gradients = dict[str, torch.Tensor]


def gradients(method: str, detr: str, rows: slice, parallel: bool) -> Gradients:
    """Of some images of the batch, in float64."""
    model = build(method, detr, "--num_queries", "6", *FLAGS[method]).double().train()
    trained = DistributedDataParallel(model) if parallel else model
    trained(rows_of(one_view_batch(*REGIONS[method]), rows))[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def of_half_the_batch(rank: int) -> dict[str, Gradients]:
    rows = slice(2 * rank, 2 * rank + 2)
    return {f"{method} {detr}": gradients(method, detr, rows, parallel=True) for method in FLAGS for detr in DETRS}


def test_two_processes_give_the_gradients_of_the_whole_batch():
    halves = run_processes(of_half_the_batch)
    for case in halves[0]:
        whole = gradients(*case.split(), slice(0, 4), parallel=False)
        assert {name.split(".")[0] for name in whole} == TRAINED[case.split()[0]]
        assert not any("backbone" in name for name in whole)
        for half in halves:
            assert half[case].keys() == whole.keys()
            for name, gradient in whole.items():
                torch.testing.assert_close(half[case][name], gradient, rtol=1e-5, atol=1e-6, msg=f"{case} {name}")
