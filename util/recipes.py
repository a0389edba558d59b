"""What an argument becomes that the user left out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.errors import CheckpointError, UserError
from util.logger import say
from util.records import DETECTION_SCALES, Choices, Classification, DataRecord, DetectorRecord, Flag
from util.saved_args import read_args

COMMON_ARCHITECTURE: dict[str, Any] = {
    "backbone": "resnet50",
    "dilation": False,
    "feature_stride": None,
    "position_embedding": "sine",
    "enc_layers": 6,
    "dec_layers": 6,
    "hidden_dim": 256,
    "nheads": 8,
    "dim_feedforward": 2048,
    "num_queries": 100,
}
"""What all detectors have that decides their parameters and what these mean, with DETR's values."""

DEFAULT_WHERE_NONE = {"feature_stride": 32}
"""The value that None stands for. Only timm backbones have this flag, and only where one map is used."""

SCHEDULE = ("epochs", "lr_drop", "max_steps", "lr_drop_step")
DROPS = ("lr_drop", "lr_drop_step")

# Where things lie, and how a run starts: no part of what it computes when it is resumed.
OTHER_DATA = ("proposal_dir", "val_path", "val_proposal_dir")
START = ("resume", "output_dir", "device", "eval", "args_from")
PLACES = ("data_path", *OTHER_DATA, "backbone_weights", "pretrain", "new_parts", "num_workers", *START)
ONCE = ("backbone_weights", "pretrain", "new_parts", *START)
"""Those of the places that a resumed run does not take up again."""

CLASS_WEIGHTS = ("set_cost_class", "cls_loss_coef", "eos_coef", "focal_alpha")
"""What depends on how a run classifies."""

PAPER = "paper"
"""The value of ``--recipe`` that changes nothing."""

SMALL = "small"
"""The value of ``--recipe`` for small data sets of one's own, see :mod:`datasets.small_recipe`."""

SMALL_BELOW = 2000
"""With fewer labelled training images, finetuning takes :data:`SMALL` unless another recipe is typed."""

FIRST_LR = 1e-4
"""Learning rate of pretraining, and of DETR."""


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, choices: Choices
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What was typed, or else stands in the file of ``--args_from``, and the parser's defaults.

    What is in neither is None, so that a checkpoint or a recipe may fill it before the default does. How a run starts
    has its defaults at once.

    Raises:
        UserError: ``--args_from`` is no such file.
    """
    defaults = vars(parser.parse_args([]))
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults)))
    if args.args_from is not None:
        if args.resume not in (None, "auto"):
            raise UserError("--resume FILE goes on with that run's own arguments: leave --args_from out")
        saved = with_recipe(read_args(parser, args.args_from))
        fill(args, still_valid(args, {name: value for name, value in saved.items() if name not in START}, choices))
    fill(args, {name: defaults[name] for name in START if name in defaults})
    return args, defaults


def with_recipe(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved arguments of any version: runs of earlier ones knew no recipe but the paper's."""
    return {"recipe": PAPER} | saved


def complete(
    args: argparse.Namespace,
    defaults: dict[str, Any],
    choices: Choices,
    recipe: Callable[[argparse.Namespace, Choices], dict[str, Any]],
    *,
    small: Mapping[str, Any] | None = None,
    saved: dict[str, Any] | None = None,
    source: str | Path = "",
    resumes: bool = False,
    fixed: Sequence[str] = (),
) -> None:
    """Fill every argument that was not typed. What comes first wins:

    1. what the user typed, then what stands in the file of ``--args_from`` (``args``, from :func:`parse`);
    2. what the checkpoint was made with: of any checkpoint the architecture, which it is an error to contradict; of a
       run that is resumed everything else, too, but for :data:`ONCE`;
    3. ``--recipe small``: what suits the data of this run;
    4. the recipe of the papers for the chosen detector, task and data;
    5. the parser's default.

    Args:
        defaults: the parser's.
        recipe: :func:`pretrain_recipe` or :func:`finetune_recipe`.
        small: values of ``--recipe small`` for these data; None: another recipe is used.
        saved: arguments of the checkpoint to start from; None: there is none.
        source: its file, for messages.
        resumes: the run goes on where the checkpoint was written; a new run may have another number of queries.
        fixed: further arguments that a resumed run must keep.

    Raises:
        CheckpointError: the user typed another value than the checkpoint was trained with.
    """
    if saved is not None:
        free = () if resumes else ("num_queries",)
        adopt(args, architecture_names(choices.detectors), saved, source, free)
    if saved is not None and resumes:
        adopt(args, fixed, saved, source)
        continue_run(args, saved, choices)
    fill(args, format_of_typed_flags(args, choices))
    fill(args, small or {})
    fill(args, {option: next(iter(records)) for option, records in choices.tables().items()})
    fill(args, architecture_defaults(choices.detectors[args.detr]))
    fill(args, recipe(args, choices))
    fill(args, defaults)


def format_of_typed_flags(args: argparse.Namespace, choices: Choices) -> dict[str, str]:
    """The data format whose own flag was typed, where a format can be recognised: then it need not be."""
    owners = choices.owners("dataset_file")
    typed = next((names[0] for name, (_, names) in owners.items() if getattr(args, name) is not None), None)
    return {"dataset_file": typed} if typed and "auto" in choices.datasets else {}


def architecture_names(detectors: Mapping[str, DetectorRecord]) -> tuple[str, ...]:
    """Arguments that decide a detector's parameters and what they mean; a checkpoint fixes these."""
    own = dict.fromkeys(flag.name for record in detectors.values() for flag in record.flags)
    return ("detr", *COMMON_ARCHITECTURE, *own)


def architecture_defaults(record: DetectorRecord) -> dict[str, Any]:
    """The paper's detector."""
    return COMMON_ARCHITECTURE | defaults_of(record.flags) | dict(record.defaults)


def without_flags_of_others(saved: dict[str, Any], detectors: Mapping[str, DetectorRecord]) -> dict[str, Any]:
    """Saved arguments less the flags of other detectors, which runs of earlier versions kept with a value."""
    chosen = detectors.get(saved.get("detr", ""))
    if chosen is None:
        return saved
    own = _flag_names(chosen)
    of_any = set().union(*map(_flag_names, detectors.values()))
    return {name: value for name, value in saved.items() if name not in of_any - own}


def _flag_names(record: DetectorRecord) -> set[str]:
    return {flag.name for stage in ("pretrain", "finetune") for flag in record.flags_in(stage)}


def defaults_of(flags: Sequence[Flag]) -> dict[str, Any]:
    """The defaults that flags have of their own."""
    return {flag.name: flag.default for flag in flags if flag.default is not None}


def places(datasets: Mapping[str, DataRecord]) -> set[str]:
    """:data:`PLACES` and the data formats' own."""
    flags = [flag for record in datasets.values() for stage in record.flags for flag in record.flags[stage]]
    return {*PLACES, *(flag.name for flag in flags if flag.is_place)}


def pretrain_recipe(args: argparse.Namespace, choices: Choices) -> dict[str, Any]:
    """Values of the papers' pretraining for this task, detector and data.

    The data have the last word, then the detector, then the task. Before all of them come the values of ``--recipe``.
    """
    data, detector = choices.datasets[args.dataset_file], choices.detectors[args.detr]
    task = choices.pretexts[args.method]
    recipe = {
        "scales": list(data.scales),
        "max_size": data.max_size,
        "lr": FIRST_LR,
        "batch_size": 8,
        "amp": "none",
        **_class_weights(task.classification or detector.classification),
        **defaults_of(detector.training_flags.get("pretrain", ())),
        **defaults_of(task.flags),
        **task.defaults,
        **detector.pretraining.get(args.method, {}),
        **data.pretraining.get(args.method, {}),
        **task.recipes.get(args.recipe, {}),
    }
    epochs, lr_drop = recipe.pop("epochs", None), recipe.pop("lr_drop", None)
    length = {"max_steps": data.max_steps} if epochs is None else {"epochs": epochs}
    return recipe | _schedule_of(args, length, drop_at=2 / 3, lr_drop=lr_drop)


def finetune_recipe(args: argparse.Namespace, choices: Choices) -> dict[str, Any]:
    """Values of the paper's finetuning for this detector."""
    record = choices.detectors[args.detr]
    finetuning = record.finetuning
    recipe = {
        "recipe": PAPER,
        "scales": list(DETECTION_SCALES),
        "max_size": 1333,
        **_class_weights(record.classification),
        "lr": finetuning.lr,
        "lr_backbone": finetuning.lr_backbone_pretrained if args.pretrain else finetuning.lr_backbone_scratch,
        "batch_size": 2,
        "amp": "none",
        "eval_size": max(args.scales or DETECTION_SCALES),
        "eval_max_size": args.max_size or 1333,
        **defaults_of(record.training_flags.get("finetune", ())),
    }
    return recipe | _schedule_of(args, {"epochs": finetuning.epochs}, drop_at=finetuning.drop_at)


def _class_weights(classification: Classification) -> dict[str, float]:
    """Cost and weights of this classification."""
    if classification == "focal":
        return {"set_cost_class": 2.0, "cls_loss_coef": 2.0, "focal_alpha": 0.25}
    return {"set_cost_class": 1.0, "cls_loss_coef": 1.0, "eos_coef": 0.1}


def _schedule_of(
    args: argparse.Namespace, default: dict[str, int], *, drop_at: float, lr_drop: int | None = None
) -> dict[str, int]:
    """The length that was typed, else the default one, and where lr drops, if it does (``--lr_schedule step``).

    That is the share ``drop_at`` of the length, or after ``lr_drop`` epochs, however many there are.
    """
    length = {name: getattr(args, name) for name in ("epochs", "max_steps") if getattr(args, name) is not None}
    drops = {"epochs": "lr_drop", "max_steps": "lr_drop_step"}
    length = length or default
    if args.lr_schedule == "cosine":
        return length
    shares = {drops[name]: round(drop_at * value) for name, value in length.items()}
    if "lr_drop" in shares and lr_drop is not None:
        shares["lr_drop"] = lr_drop
    return length | shares


def fill(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Set every argument in ``values`` that the user left out."""
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def adopt(
    args: argparse.Namespace,
    names: Sequence[str],
    saved: dict[str, Any],
    source: str | Path,
    free: Collection[str] = (),
) -> None:
    """Take arguments from a checkpoint that they cannot differ from, but for those that are ``free``.

    Raises:
        CheckpointError: the user typed another value than the checkpoint was trained with.
    """
    for name in names:
        if name not in saved:
            continue
        typed = getattr(args, name)
        if typed is not None and name in free:
            continue
        value = DEFAULT_WHERE_NONE.get(name) if saved[name] is None else saved[name]
        if typed is not None and typed == value:
            continue
        if typed is not None:
            raise CheckpointError(
                f"--{name} {typed} does not fit {source}, which was trained with --{name} {saved[name]}; "
                f"leave --{name} out to take the checkpoint's"
            )
        setattr(args, name, saved[name])


def continue_run(args: argparse.Namespace, saved: dict[str, Any], choices: Choices) -> None:
    """A resumed run goes on as it was: what is not typed again is what it was, but for :data:`ONCE`.

    Where its data lie is said, for they may lie elsewhere now.
    """
    kept = {name: value for name, value in saved.items() if hasattr(args, name) and name not in ONCE}
    kept = {name: value for name, value in still_valid(args, kept, choices).items() if getattr(args, name) is None}
    fill(args, kept)
    of_data = [name for name in kept if name in data_places(choices.datasets) and kept[name] is not None]
    if of_data:
        say(f"data of the resumed run: {' '.join(f'--{name} {_as_typed(kept[name])}' for name in of_data)}")


def still_valid(args: argparse.Namespace, saved: dict[str, Any], choices: Choices) -> dict[str, Any]:
    """Saved arguments without those that something typed makes meaningless.

    * A length that is typed replaces the saved schedule as a whole, for where lr drops is a share of it; another
      ``--lr_schedule`` leaves the drop behind.
    * Data that are typed, or another format, leave behind where the saved data lie.
    * Another detector, task or format leaves behind the flags that only some of them have; another detector also what
      the detectors differ in.
    """
    dropped: set[str] = set()
    if args.epochs is not None or args.max_steps is not None:
        dropped |= {*SCHEDULE}
    if args.lr_schedule not in (None, saved.get("lr_schedule", "step")):
        dropped |= {*DROPS}
    of_data = data_places(choices.datasets)
    if any(getattr(args, name, None) is not None for name in of_data.difference(OTHER_DATA)):
        dropped |= of_data
    for option, records in choices.tables().items():
        if getattr(args, option) in (None, saved.get(option)):
            continue
        dropped |= choices.owners(option).keys()
        dropped |= {name for record in records.values() for name in getattr(record, "defaults", ())}
        dropped |= {*CLASS_WEIGHTS} if option != "dataset_file" else of_data
    return {name: value for name, value in saved.items() if name not in dropped}


def data_places(datasets: Mapping[str, DataRecord]) -> set[str]:
    """Arguments that say where the data lie."""
    return places(datasets).difference(ONCE, ["num_workers"])


def _as_typed(value: Any) -> str:
    return shlex.join(map(str, value)) if isinstance(value, list) else shlex.quote(str(value))


def report_changes(args: argparse.Namespace, saved: dict[str, Any], datasets: Mapping[str, DataRecord]) -> None:
    """Say what a resumed run does otherwise than the stopped one; places do not count."""
    known = places(datasets)
    changes = [
        f"--{name} {saved[name]} -> {value}"
        for name, value in vars(args).items()
        if name in saved and name not in known and saved[name] != value
    ]
    if changes:
        say(f"changed since the run was stopped: {', '.join(changes)}")
