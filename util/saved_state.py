"""Loads checked states of optimizer, scheduler and scaler; torch accepts any state and fails later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, with the shape of the parameter


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the moments of AdamW; its settings remain those of the command line.

    Raises:
        ValueError: the state is invalid or of other parameters.
    """
    own = optimizer.state_dict()
    shares = [[len(group["params"]) for group in state["param_groups"]] for state in (own, saved)]
    if shares[0] != shares[1]:
        raise ValueError(f"the optimizer has {shares[0]} parameters and the checkpoint {shares[1]}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in saved["state"].items():
        shape = parameters[index].shape
        expected = {"step": torch.Size()} | dict.fromkeys(MOMENTS, shape)
        if {name: value.shape for name, value in state.items()} != expected or not _are_numbers(state):
            raise ValueError(f"the state of parameter {index} is not a state of AdamW for the shape {list(shape)}")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own["param_groups"]})


def _are_numbers(state: dict[str, Tensor]) -> bool:
    return all(value.is_floating_point() for value in state.values())


def load_scheduler(scheduler: LRScheduler, saved: dict[str, Any]) -> None:
    """Load the state of a scheduler of the same kind; raises ValueError for an invalid state."""
    own = scheduler.state_dict()
    if saved.keys() != own.keys() or any(type(saved[name]) is not type(value) for name, value in own.items()):
        raise ValueError("the state of the learning rate is invalid")
    scheduler.load_state_dict({**saved, "lr_lambdas": own["lr_lambdas"]})


def load_scaler(scaler: torch.amp.GradScaler, saved: dict[str, Any]) -> None:
    """Load the state of fp16's scaler, empty if the stopped run had none; raises ValueError for an invalid state."""
    if not all(type(value) in (int, float) for value in saved.values()):
        raise ValueError("the state of the loss scale is invalid")
    if saved:
        scaler.load_state_dict(saved)
