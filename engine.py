"""The loops that both scripts share: training by steps or epochs, and evaluation."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import record_function
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets import DATASETS
from datasets.coco_eval import DetectionEvaluator
from models import DETECTORS
from models.checkpoints.origin import Origin
from models.detr import DETR
from models.postprocess import PostProcess
from models.predictor import detect
from util import distributed, signals
from util.checkpoint import LATEST, save_checkpoint, written_before
from util.errors import CheckpointError, UserError
from util.logger import Meters, Progress, RunLog, say, shows_progress, was_evaluated
from util.precision import autocast
from util.recipes import SCHEDULE, tell_changes
from util.rng import restore_rank_rng, rng_state
from util.saved_state import load_optimizer, load_scaler, load_scheduler
from util.schedule import Schedule
from util.signals import HeldSignals, Stopped
from util.stopping import Stopping


@dataclass
class Training:
    """Everything that changes while a run goes on, and so everything that a checkpoint holds.

    Attributes:
        method: ``forward(batch) -> (loss, logs)``; its ``detector`` is what the checkpoint's ``model`` holds.
        optimizer, scheduler, scaler: of torch; the scaler does nothing unless fp16 is used.
        rates: learning rate of each of the optimizer's parameter groups before the schedule's factor.
        schedule: how long the run is and how far it has come. The position in the shuffled data follows from it.
        evaluation_due: the detector as it is now is to be evaluated before training goes on.
        saved: the checkpoint that holds all this as it is now, or None.
        written: the checkpoints that the run has written and not deleted, oldest first.
    """

    method: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    rates: list[float]
    schedule: Schedule
    evaluation_due: bool = False
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
            "rng": distributed.all_gather_object(rng_state()),
        }
        if hasattr(self.method, "pretext_state_dict"):
            state["pretext"] = self.method.pretext_state_dict()
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
            load_optimizer(self.optimizer, state["optimizer"])
            load_scheduler(self.scheduler, state["lr_scheduler"])
            load_scaler(self.scaler, state["scaler"])
            self.schedule.go_on_at(*position_of(state, self.schedule.num_images))
            restore_rank_rng(state["rng"])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(f"--resume {source}: does not fit this run ({' '.join(first[:2])})") from None

    def use_rates(self, args: argparse.Namespace) -> None:
        """Let the learning rates and the weight decay of the command line hold, not those of a resumed run."""
        factor = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        self.scheduler.base_lrs = list(self.rates)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group.update(initial_lr=rate, lr=rate * factor, weight_decay=args.weight_decay)


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
    # fused: each parameter is read and written once; a third of the time of the default on a CPU
    optimizer = torch.optim.AdamW(param_groups, lr=args.lr, weight_decay=args.weight_decay, fused=True)
    scheduler = LambdaLR(optimizer, lambda step: schedule.learning_rate_factor(step))
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    rates = [group["lr"] for group in param_groups]
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
    done = was_evaluated(origin.path.parent, training.step) if distributed.is_main() else None
    training.evaluation_due = (
        origin.content.get("evaluation_due") is True and not distributed.all_gather_object(done)[0]
    )
    say(f"resumed from {origin.path} at step {training.step} of {training.schedule.total_steps}")
    if training.schedule.is_finished:
        say("nothing is left to do; to go on, raise --epochs or --max_steps")
    tell_changes(args, origin.content["args"], DATASETS)


def param_groups(module: nn.Module, rates: Mapping[str, float], group_of: Mapping[str, str]) -> list[dict[str, Any]]:
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


def distribute(method: nn.Module, device: torch.device, args: argparse.Namespace) -> nn.Module:
    """``method`` itself, or wrapped so that the processes average their gradients."""
    if distributed.world_size() == 1:
        return method
    # No buffer is trained by one process alone (batch norms are frozen or global), so none needs broadcasting in
    # each step; the flag that says so has another name from torch 2.15 on.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    no_broadcast = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(
        method,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        find_unused_parameters=DETECTORS[args.detr].leaves_unused(args),
        **{no_broadcast: False},
    )


def train(
    training: Training,
    loader: DataLoader,
    args: argparse.Namespace,
    device: torch.device,
    log: RunLog,
    describe: dict[str, Any],
    evaluate_now: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train from ``training.step`` to the end of the schedule.

    Args:
        loader: its ``batch_sampler`` is an ``EpochBatchSampler``.
        describe: what checkpoints hold beside the training's state: args, stage, categories.
        evaluate_now: evaluates the detector and returns numbers for the log; called every ``--eval_every`` epochs
            and at the end.
    """
    model = distribute(training.method, device, args)
    schedule = training.schedule
    progress = Progress(total=schedule.total_steps, start=training.step, images_per_step=schedule.images_per_step)
    meters = Meters()
    with HeldSignals("finishing the step and saving") as held:
        stopping = Stopping(held)
        if training.evaluation_due and evaluate_now is not None:
            evaluate_and_log(training, log, evaluate_now)
        while not schedule.is_finished:
            loader.batch_sampler.set_position(schedule.epoch, schedule.images)
            batches = iter(loader)
            training.method.train()
            for _ in range(min(schedule.steps_left_in_epoch, schedule.total_steps - schedule.step)):
                meters.update(train_step(model, training, batches, args, device))
                progress.advance()
                if training.step % args.log_every == 0 or schedule.is_finished:
                    write_log(training, meters, log, progress)
                at_boundary = schedule.images == 0 or schedule.is_finished
                if args.save_every_steps and training.step % args.save_every_steps == 0 and not at_boundary:
                    save(training, args, describe)
                if not at_boundary:
                    stop_if(stopping.after_step(), training, args, describe)
            end_epoch(training, args, log, describe, evaluate_now, stopping)
            progress.pause()
    progress.close()


def stop_if(number: int, training: Training, args: argparse.Namespace, describe: dict[str, Any]) -> None:
    """End the run if ``number`` is that of a signal and something is left to do, saved as it is now. Collective.

    Raises:
        Stopped: it ends; the message says how to go on.
    """
    if not number or (training.schedule.is_finished and not training.evaluation_due):
        return
    if training.saved is None:
        save(training, args, describe)
    raise Stopped(number, _how_to_go_on(number, training))


def _how_to_go_on(number: int, training: Training) -> str:
    return (
        f"stopped by {signal.Signals(number).name} after step {training.step} of {training.schedule.total_steps}, "
        f"saved as {training.saved}; the same command with --resume auto goes on from here"
    )


def train_step(
    model: nn.Module, training: Training, batches: Iterator, args: argparse.Namespace, device: torch.device
) -> dict[str, Tensor]:
    """One optimizer step over ``--accum_steps`` batches; returns scalars for the log, still on the device."""
    training.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index in range(args.accum_steps):
        with record_function("data"):
            batch = to_device(next(batches), device)
        waits = index + 1 < args.accum_steps and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else contextlib.nullcontext():
            with autocast(device, args.amp):
                loss, logs = model(batch)
            with record_function("backward"):
                training.scaler.scale(loss / args.accum_steps).backward()
        for name, value in logs.items():
            sums[name] = sums.get(name, 0) + value.detach() / args.accum_steps
    with record_function("optimizer"):
        training.scaler.unscale_(training.optimizer)
        # an infinite limit still measures the norm
        limit = args.clip_max_norm or float("inf")
        sums["grad_norm"] = nn.utils.clip_grad_norm_(parameters_to_train(training.method), limit)
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.scheduler.step()
    training.advance()
    return sums


def to_device(batch: Any, device: torch.device) -> Any:
    """Move everything in a batch that knows ``to``; containers keep their form."""
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(item, device) for item in batch)
    if isinstance(batch, dict):
        return {name: to_device(item, device) for name, item in batch.items()}
    return batch.to(device, non_blocking=True)


def write_log(training: Training, meters: Meters, log: RunLog, progress: Progress) -> None:
    """One line of log.txt: means since the last one.

    Raises:
        FloatingPointError: the loss was not finite, so that going on is of no use.
    """
    values = meters.read()
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss is {values['loss']} at step {training.step}: lower --lr, or use --amp bf16 or none"
        )
    values["lr"] = training.scheduler.get_last_lr()[0]
    values["images_per_second"] = progress.report(values)
    log.write("train", training.step, {"epoch": training.schedule.epochs_done, **values})


def end_epoch(
    training: Training,
    args: argparse.Namespace,
    log: RunLog,
    describe: dict[str, Any],
    evaluate_now: Callable[[], dict[str, float]] | None,
    stopping: Stopping,
) -> None:
    """What is due after an epoch, or after the last step: the checkpoint, then evaluation."""
    last = training.schedule.is_finished
    say(f"{training.step}/{training.schedule.total_steps} steps, {training.epoch} epochs done")
    wanted = last or (args.eval_every and training.epoch % args.eval_every == 0) if evaluate_now else False
    training.evaluation_due = bool(wanted)
    due = last or (args.save_every_epochs and training.epoch % args.save_every_epochs == 0)
    if due or (args.save_every_steps and training.step % args.save_every_steps == 0):
        save(training, args, describe)
    stop_if(stopping.now(), training, args, describe)
    if training.evaluation_due:
        evaluate_and_log(training, log, evaluate_now)


def evaluate_and_log(training: Training, log: RunLog, evaluate_now: Callable[[], dict[str, float]]) -> None:
    """Evaluate as is due. A signal ends it at once where the step is saved: the resumed run evaluates then."""
    try:
        with signals.raising() if training.saved else contextlib.nullcontext():
            log.write("eval", training.step, {"epoch": training.epoch, **evaluate_now()})
    except Stopped as stopped:
        raise Stopped(stopped.number, f"{_how_to_go_on(stopped.number, training)}, with the evaluation") from None
    training.evaluation_due = False


def save(training: Training, args: argparse.Namespace, describe: dict[str, Any]) -> None:
    """Write a checkpoint; collective.

    Raises:
        FloatingPointError: the weights are not finite; what was saved before is kept.
        UserError: the disk is full or gone.
    """
    weights = parameters_to_train(training.method)
    if not torch.stack([weight.isfinite().all() for weight in weights]).all():
        raise FloatingPointError(
            f"the weights are NaN or infinite at step {training.step}: lower --lr, or use --amp bf16 or none; "
            f"go on from an earlier checkpoint in {args.output_dir}"
        )
    state = training.state_dict()
    if distributed.is_main():
        try:
            content = {**state, **describe}
            save_checkpoint(args.output_dir, content, keep=args.keep_checkpoints, written=training.written)
        except OSError as error:
            raise UserError(f"{args.output_dir}: cannot write a checkpoint ({error.strerror or error})") from None
    training.saved = Path(args.output_dir) / LATEST
    distributed.barrier()


@torch.no_grad()
def evaluate(
    detector: DETR,
    postprocess: PostProcess,
    loader: DataLoader,
    device: torch.device,
    amp: str = "none",
) -> dict[str, Any] | None:
    """Detect on a whole data set, sharded over processes, and score it. Collective.

    Returns:
        The metrics (see ``DetectionEvaluator.summarize``) on the main process, None elsewhere.
    """
    detector.eval()
    evaluator = DetectionEvaluator(loader.dataset)
    for images, targets in tqdm(loader, desc="evaluate", leave=False, disable=not shows_progress()):
        sizes = torch.stack([target["orig_size"] for target in targets])
        results = detect(detector, postprocess, images, sizes, device, amp)
        evaluator.update([int(target["image_id"]) for target in targets], results)
    evaluator.synchronize()
    return evaluator.summarize() if distributed.is_main() else None
