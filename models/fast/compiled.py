"""``--compile``: the arithmetic of a training step as a few graphs instead of thousands of small operations.

``torch.compile`` fuses what stands between matrix products. The matching goes through the host and stays outside, and
so does what processes exchange. Sizes are symbolic from the first step on: one graph serves all of them, so that the
first steps compile all there is, and a resumed run computes with the same graphs, whichever size it meets first.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx.experimental import _config as symbolic

from models.fast.frozen_backbone import frozen_parts
from util.errors import UserError


def compile_steps(method: nn.Module, backend: str = "inductor") -> None:
    """Compile the parts of a pretext task or of a :class:`models.supervised.SupervisedDETR`, in place.

    Parameters and their names stay as they are. Compilation itself comes with the first calls.

    Args:
        backend: of torch.compile; "aot_eager" makes the same graphs and runs them operation by operation.

    Raises:
        UserError: torch.compile does not work here, for want of a compiler as a rule.
    """
    detector, criterion = method.detector, method.criterion
    _see_that_it_works(next(detector.parameters()).device, backend)
    symbolic.use_duck_shape = False  # or height and width would be one symbol where the first images are square
    parts = [(module, "forward") for module in frozen_parts(method)]
    parts += [(detector, "features"), (detector, "ask")]
    parts += [(criterion.matcher, "pair_costs"), (criterion, "terms"), (criterion, "error_rates")]
    for module, name in parts:
        setattr(module, name, torch.compile(getattr(module, name), dynamic=True, backend=backend))


def _see_that_it_works(device: torch.device, backend: str) -> None:
    """Compile something trivial before hours are spent on anything else."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compilers beneath raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--compile: torch.compile does not work here ({lines[0]}); leave --compile out") from None
