"""The loops that both scripts share: training by steps or epochs, and evaluation."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function
from torch.utils.data import DataLoader

from datasets.coco_eval import DetectionEvaluator
from models import DETECTORS
from models.criterion import SetCriterion
from models.detr import DETR
from models.fast.compiled import begin_step
from models.postprocess import PostProcess
from models.precision import computing
from models.predictor import forward
from models.validation_loss import ValidationLoss
from training import Training, parameters_to_train
from util import distributed, signals
from util.checkpoint import BEST, LATEST, keep_as_best, save_checkpoint, save_file
from util.errors import UserError
from util.evaluations import best_of, is_out_of_patience
from util.logger import Meters, RunLog, say
from util.progress import Progress, watched
from util.run_summary import Beginning, number_of
from util.signals import HeldSignals, Stopped
from util.stopping import Stopping


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


@dataclass(frozen=True)
class Evaluation:
    """How a run is evaluated.

    Attributes:
        now: () -> numbers for the log; {} on other processes than the main one. Collective.
        best_by: the number whose best checkpoint is kept as ``checkpoint_best.pth``; None: no such checkpoint.
        patience: after so many evaluations without a better one training ends; 0: it does not.
    """

    now: Callable[[], dict[str, float]]
    best_by: str | None = None
    patience: int = 0

    def ends(self, training: Training) -> bool:
        """Whether training is to end for want of a better evaluation."""
        return self.best_by is not None and is_out_of_patience(training.evaluations, self.best_by, self.patience)


def train(
    training: Training,
    loader: DataLoader,
    args: argparse.Namespace,
    device: torch.device,
    log: RunLog,
    describe: dict[str, Any],
    evaluation: Evaluation | None = None,
) -> None:
    """Train from ``training.step`` to the end of the schedule, or until patience ends.

    Args:
        loader: its ``batch_sampler`` is an ``EpochBatchSampler``.
        describe: what checkpoints hold beside the training's state: args, stage, categories.
        evaluation: made every ``--eval_every`` epochs and at the end; None: never.
    """
    model = distribute(training.method, device, args)
    if training.ema is not None and not training.step:
        training.ema.load_state_dict(None)  # only now have all processes the weights of the first
    schedule = training.schedule
    progress = Progress(total=schedule.total_steps, start=training.step, images_per_step=schedule.images_per_step)
    beginning = Beginning(schedule.total_steps - training.step, device)
    meters = Meters()
    with HeldSignals("finishing the step and saving") as held:
        stopping = Stopping(held)
        if training.evaluation_due and evaluation is not None:
            evaluate_and_log(training, args, log, describe, evaluation)
        while not is_over(training, evaluation):
            loader.batch_sampler.set_position(schedule.epoch, schedule.images)
            batches = iter(loader)
            training.method.train()
            for _ in range(min(schedule.steps_left_in_epoch, schedule.total_steps - schedule.step)):
                meters.update(train_step(model, training, batches, args, device))
                progress.advance()
                beginning.after_step()
                if training.step % args.log_every == 0 or schedule.is_finished:
                    write_log(training, meters, log, progress)
                elif progress.is_due:
                    progress.tell(meters.peek("loss"), training.scheduler.get_last_lr()[0])
                at_boundary = schedule.images == 0 or schedule.is_finished
                if args.save_every_steps and training.step % args.save_every_steps == 0 and not at_boundary:
                    save(training, args, describe)
                if not at_boundary:
                    stop_if(stopping.after_step(), training, args, describe)
            end_epoch(training, args, log, describe, evaluation, stopping)
            progress.pause()
        progress.close()
        if evaluation is not None:
            finish(training, args, describe, evaluation)


def is_over(training: Training, evaluation: Evaluation | None) -> bool:
    """Whether the schedule or patience is at its end."""
    return training.schedule.is_finished or (evaluation is not None and evaluation.ends(training))


def finish(training: Training, args: argparse.Namespace, describe: dict[str, Any], evaluation: Evaluation) -> None:
    """Save what patience ended, and say which checkpoint was the best. Collective."""
    if not training.schedule.is_finished:
        if training.saved is None:
            save(training, args, describe)
        say(
            f"ended after step {training.step} of {training.schedule.total_steps}: "
            f"{number_of(evaluation.patience, 'evaluation')} without a better {evaluation.best_by} (--patience)"
        )
    best = None if evaluation.best_by is None else best_of(training.evaluations, evaluation.best_by)
    path = Path(args.output_dir) / BEST
    if best is not None and path.exists():
        say(f"best {evaluation.best_by} {best[evaluation.best_by]:.4g} after step {best['step']}: {path}")


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
    if args.cuda_graphs:
        begin_step()
    training.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index in range(args.accum_steps):
        with record_function("data"):
            batch = to_device(next(batches), device)
        waits = index + 1 < args.accum_steps and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else contextlib.nullcontext():
            with computing(model, device, args.amp):
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
    if training.ema is not None:
        training.ema.update(training.step)
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
    evaluation: Evaluation | None,
    stopping: Stopping,
) -> None:
    """What is due after an epoch, or after the last step: the checkpoint, then evaluation."""
    last = training.schedule.is_finished
    say(f"{training.step}/{training.schedule.total_steps} steps, {training.epoch} epochs done")
    training.evaluation_due = evaluation is not None and training.wants_evaluation(args.eval_every)
    due = last or (args.save_every_epochs and training.epoch % args.save_every_epochs == 0)
    if due or (args.save_every_steps and training.step % args.save_every_steps == 0):
        save(training, args, describe)
    stop_if(stopping.now(), training, args, describe)
    if training.evaluation_due:
        evaluate_and_log(training, args, log, describe, evaluation)


def evaluate_and_log(
    training: Training, args: argparse.Namespace, log: RunLog, describe: dict[str, Any], evaluation: Evaluation
) -> None:
    """Evaluate as is due, and keep the checkpoint if it is the best so far. Collective.

    A signal ends the evaluation at once where the step is saved: the resumed run evaluates then. The log comes last, so
    that an evaluation that is in the log needs nothing more.
    """
    try:
        with signals.raising() if training.saved else contextlib.nullcontext():
            numbers = evaluation.now()
    except Stopped as stopped:
        raise Stopped(stopped.number, f"{_how_to_go_on(stopped.number, training)}, with the evaluation") from None
    numbers = distributed.all_gather_object(numbers)[0]
    training.evaluation_due = False
    training.evaluations.append({"step": training.step, **numbers})
    best_by = evaluation.best_by
    if best_by is not None and best_of(training.evaluations, best_by) is training.evaluations[-1]:
        save_as_best(training, args, describe)
    log.write("eval", training.step, {"epoch": training.epoch, **numbers})


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
        with writing_to(args.output_dir):
            content = {**state, **describe}
            save_checkpoint(args.output_dir, content, keep=args.keep_checkpoints, written=training.written)
    training.saved = Path(args.output_dir) / LATEST
    distributed.barrier()


def save_as_best(training: Training, args: argparse.Namespace, describe: dict[str, Any]) -> None:
    """Let ``checkpoint_best.pth`` be the run as it is now: what was saved of it, or else written anew. Collective.

    Raises:
        UserError: the disk is full or gone.
    """
    state = None if training.saved else training.state_dict()
    if distributed.is_main():
        with writing_to(args.output_dir):
            if state is None:
                keep_as_best(args.output_dir, training.saved)
            else:
                save_file({**state, **describe}, Path(args.output_dir) / BEST)
    distributed.barrier()


@contextlib.contextmanager
def writing_to(folder: str) -> Iterator[None]:
    """What the disk refuses becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot write a checkpoint ({error.strerror or error})") from None


@torch.no_grad()
def evaluate(
    detector: DETR,
    criterion: SetCriterion,
    loader: DataLoader,
    device: torch.device,
    amp: str = "none",
    max_detections: int = 100,
) -> dict[str, Any] | None:
    """Detect on a whole data set, sharded over processes, and score it. Collective.

    Returns:
        The metrics (see ``DetectionEvaluator.summarize``) and losses (see ``ValidationLoss.read``) on the main process,
        None elsewhere.
    """
    detector.eval()
    postprocess = PostProcess(detector.classification, top_k=max_detections)
    evaluator = DetectionEvaluator(loader.dataset, max_detections=max_detections)
    loss = ValidationLoss(criterion)
    for images, targets in watched(loader, len(loader), "evaluate"):
        sizes = torch.stack([target["orig_size"] for target in targets])
        outputs = forward(detector, images, device, amp)
        evaluator.update([int(target["image_id"]) for target in targets], postprocess(outputs, sizes.to(device)))
        loss.update(outputs, to_device(targets, device))
    evaluator.synchronize()
    losses = loss.read()
    if not distributed.is_main():
        return None
    began = time.perf_counter()
    summary = evaluator.summarize()
    say(f"scored by {evaluator.scorer.name} in {time.perf_counter() - began:.1f} s")
    return {**summary, **losses}
