"""What changes while a run goes on: weights, optimizer, schedule and place; saved and taken up again as a whole."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from datasets import DATASETS
from models.checkpoints.origin import Origin
from models.fast.compiled import compile_steps
from models.fast.frozen_backbone import frozen_parts, hold_weights_in
from util import distributed
from util.checkpoint import written_before
from util.ema import Ema
from util.errors import CheckpointError, UserError
from util.logger import find_evaluation, say
from util.precision import AMP_TYPES
from util.recipes import SCHEDULE, report_changes
from util.rng import restore_rank_rng, rng_state
from util.saved_state import load_optimizer, load_scaler, load_scheduler
from util.schedule import Schedule


@dataclass
class Training:
    """Everything that changes while a run goes on, and so everything that a checkpoint holds.

    Attributes:
        method: ``forward(batch) -> (loss, logs)``; its ``detector`` is what the checkpoint's ``model`` holds.
        optimizer, scheduler, scaler: of torch; the scaler does nothing unless fp16 is used.
        rates: learning rate of each of the optimizer's parameter groups before the schedule's factor.
        schedule: how long the run is and how far it has come. The position in the shuffled data follows from it.
        ema: averaged weights of the detector, or None.
        evaluation_due: the detector as it is now is to be evaluated before training goes on.
        evaluations: those that are done, each with its ``step``; see :mod:`util.evaluations`.
        saved: the checkpoint that holds all this as it is now, or None.
        written: the checkpoints that the run has written and not deleted, oldest first.
    """

    method: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    rates: list[float]
    schedule: Schedule
    ema: Ema | None = None
    evaluation_due: bool = False
    evaluations: list[dict[str, float]] = field(default_factory=list)
    saved: Path | None = None
    written: list[Path] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.schedule.step

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.schedule.epoch

    def wants_evaluation(self, eval_every: int) -> bool:
        """Whether the epoch that has just ended is to be evaluated: the last, and every ``eval_every``-th (0: none)."""
        return self.schedule.is_finished or (eval_every > 0 and self.epoch % eval_every == 0)

    def advance(self) -> None:
        """One more step is done."""
        self.schedule.advance()
        self.saved = None

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint, less what describes the run (args, stage, categories). Collective: call on all ranks."""
        state = {
            "model": self.method.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "images": self.schedule.images,
            "num_images": self.schedule.num_images,
            "evaluation_due": self.evaluation_due,
            "evaluations": list(self.evaluations),
            "rng": distributed.all_gather_object(rng_state()),
        }
        if hasattr(self.method, "pretext_state_dict"):
            state["pretext"] = self.method.pretext_state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on where ``state`` was saved.

        Raises:
            CheckpointError: it does not fit; ``source`` is named.
        """
        try:
            self.method.detector.load_state_dict(state["model"])
            if hasattr(self.method, "pretext_state_dict"):
                self.method.load_pretext_state_dict(state["pretext"])
            if self.ema is not None:
                self.ema.load_state_dict(state.get("ema"))
            load_optimizer(self.optimizer, state["optimizer"])
            load_scheduler(self.scheduler, state["lr_scheduler"])
            load_scaler(self.scaler, state["scaler"])
            self.schedule.go_on_at(*position_of(state, self.schedule.num_images))
            restore_rank_rng(state["rng"])
            self.evaluations = list(state.get("evaluations", ()))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(f"--resume {source}: does not fit this run ({' '.join(first[:2])})") from None

    def use_rates(self, args: argparse.Namespace) -> None:
        """Let the learning rates and the weight decay of the command line hold, not those of a resumed run."""
        factor = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        self.scheduler.base_lrs = list(self.rates)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group.update(initial_lr=rate, lr=rate * factor, weight_decay=args.weight_decay)


def speed_up(method: nn.Module, args: argparse.Namespace) -> None:
    """Prepare ``method``, on its device, for what ``--amp``, ``--compile`` and ``--cuda_graphs`` ask for, in place.

    What is compiled belongs to this module: copies of the detector must be made before.

    Raises:
        UserError: nothing can be compiled here.
    """
    if args.amp != "none":
        for module in frozen_parts(method):
            hold_weights_in(module, AMP_TYPES[args.amp])
    if args.compile:
        on_gpu = next(method.parameters()).is_cuda
        if args.cuda_graphs and not on_gpu:
            say("--cuda_graphs: this run uses no GPU, so nothing is recorded")
        compile_steps(method, cuda_graphs=args.cuda_graphs and on_gpu)


def make_training(
    args: argparse.Namespace,
    method: nn.Module,
    param_groups: list[dict],
    device: torch.device,
    num_images: int,
) -> Training:
    """Optimizer (AdamW) and schedule (warm-up, then a drop or a cosine) for ``method``.

    Args:
        param_groups: of the optimizer; those without ``lr`` learn at ``--lr``.
        num_images: of the training set.

    Raises:
        UserError: ``--accum_steps`` asks for more batches than an epoch has.
    """
    batch = args.batch_size * distributed.world_size()
    if num_images < batch * args.accum_steps:
        raise UserError(f"--accum_steps {args.accum_steps}: an epoch has only {num_images // batch} batches")
    plan = {name: getattr(args, name) for name in SCHEDULE}
    plan |= {"warmup_steps": args.warmup_steps, "lr_schedule": args.lr_schedule}
    schedule = Schedule(num_images, batch * args.accum_steps, **plan)
    param_groups = [{"lr": args.lr, **group} for group in param_groups]
    rates = [group["lr"] for group in param_groups]  # before the scheduler, which changes those of the groups
    # fused: each parameter is read and written once; a third of the time of the default on a CPU
    optimizer = torch.optim.AdamW(param_groups, lr=args.lr, weight_decay=args.weight_decay, fused=True)
    scheduler = LambdaLR(optimizer, lambda step: schedule.learning_rate_factor(step))
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    return Training(method, optimizer, scheduler, scaler, rates, schedule)


def resume(training: Training, origin: Origin | None, args: argparse.Namespace) -> None:
    """Go on where ``origin`` stopped, if it is a run of this kind, and say what is done otherwise than there."""
    resumes = origin is not None and origin.resumes
    if len(set(distributed.all_gather_object(origin.content.get("step") if resumes else None))) > 1:
        raise UserError(f"--resume {args.resume}: not all processes found the same checkpoint; is it on a shared disk?")
    if not resumes:
        return
    training.load_state_dict(origin.content, origin.path)
    training.use_rates(args)
    training.saved = origin.path
    training.written = written_before(args.output_dir, origin.path, training.step)
    ended = training.epoch > position_of(origin.content, training.schedule.num_images)[1]
    if origin.content.get("evaluation_due") is True or (ended and training.wants_evaluation(args.eval_every)):
        done = find_evaluation(origin.path.parent, training.step) if distributed.is_main() else None
        done = distributed.all_gather_object(done)[0]
        training.evaluation_due = done is None
        training.evaluations += [] if done is None else [done]
    say(f"resumed from {origin.path} at step {training.step} of {training.schedule.total_steps}")
    if training.schedule.is_finished:
        say("nothing is left to train; to go on, raise --epochs or --max_steps")
    report_changes(args, origin.content["args"], DATASETS)


def group_parameters(
    module: nn.Module, rates: Mapping[str, float], group_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The parameters to train, in groups that have learning rates of their own; no group is empty.

    Args:
        rates: name of a group -> its rate; the first is that of all other parameters.
        group_of: part of a parameter's name -> its group.
    """
    groups = {name: {"params": [], "lr": rate} for name, rate in rates.items()}
    usual = next(iter(groups))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = next((group for part, group in group_of.items() if part in name), usual)
            groups[group]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def position_of(state: dict[str, Any], num_images: int) -> tuple[int, int, int]:
    """Steps done, epochs done, and images seen of the present epoch, of a checkpoint.

    Where the data set has another number of images now, the same share of it counts as seen.
    """
    step = state["step"]
    if "images" in state:
        epoch, seen, of = state["epoch"], state["images"], state["num_images"]
    else:  # written when the position followed from the steps alone
        args = state["args"]
        epoch, steps = divmod(step, state["steps_per_epoch"])
        seen, of = steps * args["batch_size"] * args["accum_steps"] * len(state["rng"]), num_images
    if not (all(type(number) is int and number >= 0 for number in (step, epoch, seen, of)) and seen <= of):
        raise ValueError(f"step {step}, epoch {epoch}, {seen} of {of} images cannot be")
    return step, epoch, seen if of == num_images else seen * num_images // of


def parameters_to_train(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``module`` that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
