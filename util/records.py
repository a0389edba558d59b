"""What makes a detector, a pretext task or a data format: one record each, at the end of its own file.

The command line, the recipes, the checks and the reading of checkpoints read these records and test no name. A new
detector, task or format is therefore one file and one entry in ``DETECTORS``, ``PRETEXTS`` or ``DATASETS``. This module
knows neither models nor data sets: what a record builds and reads is a plain function.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Classification = Literal["softmax", "focal"]
"""softmax: one distribution over the classes, the last one being "no object"; focal: one sigmoid per class."""

Stage = Literal["pretrain", "finetune", "proposals"]
"""Who reads the command line: main_pretrain.py, main_finetune.py or tools/make_proposals.py."""

NamePairs = Sequence[tuple[str, str]]
"""(theirs, ours) of parameters, see :func:`models.checkpoints.renaming.compile_rules`."""

DETECTION_SCALES = tuple(range(480, 801, 32))
"""Short sides in pixels that DETR trains with."""

SMALL_SCALES = (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)
"""Short sides in pixels for pretraining on ImageNet, as in UP-DETR, DETReg and Siamese DETR: none of them has 384."""


def num_outputs(num_classes: int, classification: Classification) -> int:
    """Outputs of a class head; softmax has one more, "no object"."""
    return num_classes + (classification == "softmax")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of the command line that only some detectors, pretext tasks or data formats have.

    A flag that several of them have is one object in the records of all of them.

    Attributes:
        name: without the two dashes.
        help: what it does; the default is added.
        options: further arguments of ``add_argument``: type, choices, nargs, metavar, action.
        default: what it becomes where neither the user, nor a checkpoint, nor a recipe says.
        least: the smallest value that is allowed.
        is_place: says where files lie, so that a resumed run may have it differently.
    """

    name: str
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)
    default: Any = None
    least: float | None = None
    is_place: bool = False


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How a detector is finetuned.

    Attributes:
        lr: learning rate.
        lr_backbone_pretrained, lr_backbone_scratch: that of the backbone, with and without ``--pretrain``.
        epochs: length of the schedule.
        drop_at: share of the schedule after which rates are multiplied by 0.1.
    """

    lr: float = 1e-4
    lr_backbone_pretrained: float = 5e-5
    lr_backbone_scratch: float = 1e-5
    epochs: int
    drop_at: float


def _as_it_is(name: str) -> str:
    return name


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


def _no_check(*_: Any) -> None:
    """Nothing to complain of."""


def _leave(*_: Any) -> None:
    """Nothing to change."""


def _one_map(*_: Any) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """The same detector in transformers.

    Attributes:
        model_type: of its configuration, such as "deformable_detr".
        class_name: what its class names begin with, such as "DeformableDetr".
        image_processor: what the name of its image processor begins with; None: the same.
        names: (theirs, ours) of its parameters; the backbone's are known.
        signs: parts of names in its files. A file is of the detector all of whose signs are found in it; of several,
            the one with the most signs.
        name_in_file: a name as transformers has it in memory -> in its files, where that is more than the common rules.
        config: (our arguments, the common configuration) -> the detector's configuration.
        hints: (configuration) -> our arguments that weights do not tell.
        timm_body: what names of a backbone of timm begin with, in its files.
        requires: keys of its configuration and the one value that this project has.
        sees_levels: our arguments -> whether it takes several maps of the backbone.
    """

    model_type: str
    class_name: str
    image_processor: str | None = None
    names: NamePairs
    signs: tuple[str, ...] = ()
    name_in_file: Callable[[str], str] = _as_it_is
    config: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda args, common: common
    hints: Callable[[dict[str, Any]], dict[str, Any]] = _nothing
    timm_body: str = "model.backbone.conv_encoder.model."
    requires: Mapping[str, Any] = field(default_factory=lambda: {"activation_function": "relu"})
    sees_levels: Callable[[dict[str, Any]], bool] = _one_map


@dataclass(frozen=True, kw_only=True)
class DetectorRecord:
    """A detector: how it is built, trained and recognised.

    Attributes:
        title: its name and paper.
        build: (args, number of class logits, classification=, train_backbone=) -> the detector, randomly initialised.
            ``train_backbone`` says whether the backbone gets gradients.
        classification: of finetuning, and of pretext tasks that have none of their own.
        finetuning: its recipe.
        flags: its own flags that say what it is; checkpoints keep them.
        training_flags: its own flags of how it is trained, by script; each may have a default of its own there.
        defaults: of flags that all detectors have, where they differ from :data:`util.recipes.COMMON_ARCHITECTURE`, the
            recipes' or the parser's.
        pretraining: name of a pretext task -> recipe of that task where it is another with this detector: values of
            flags, among them ``lr``, ``batch_size``, and ``epochs`` with ``lr_drop`` where the schedule counts epochs.
        check: (args, stage) raises UserError for values of its flags that do not go together.
        rates: part of a parameter's name -> name of the flag by which ``--lr`` is multiplied for it.
        leaves_unused: args -> whether a training step may leave some of its parameters without a gradient.
        signs: parameters that only it has. A checkpoint is of the detector all of whose signs are in it; of several,
            the one with the most signs.
        infer: (weights, sizes, known) -> its own flags, and other arguments where its weights tell them differently
            (None: they do not tell it). ``sizes(name)`` is the first dimension of a parameter that must be there,
            ``known`` what the file, or the user, says beside the weights; of its flags, what weights do not tell is
            taken from there.
        public_names: (theirs, ours) of parameters whose name in the public code is another.
        tidy: (renaming, configuration of Hugging Face or None) brings what is named as here into the form that the
            detector has, in place.
        deciding_flags: (regular expression for the beginning of a parameter's name, flags that decide its shape).
        hugging_face: None where transformers does not have it.
    """

    title: str
    build: Callable[..., Any]
    classification: Classification
    finetuning: Finetuning
    flags: tuple[Flag, ...] = ()
    training_flags: Mapping[Stage, tuple[Flag, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    check: Callable[[argparse.Namespace, Stage], None] = _no_check
    rates: Mapping[str, str] = field(default_factory=dict)
    leaves_unused: Callable[[argparse.Namespace], bool] = lambda args: False
    signs: tuple[str, ...]
    infer: Callable[[dict[str, Any], Callable[[str], int], dict[str, Any]], dict[str, Any]] = _nothing
    public_names: NamePairs = ()
    tidy: Callable[[Any, dict[str, Any] | None], None] = _leave
    deciding_flags: tuple[tuple[str, str], ...] = ()
    hugging_face: HuggingFace | None = None

    def flags_in(self, stage: Stage) -> tuple[Flag, ...]:
        """Its own flags in this script."""
        return self.flags + self.training_flags.get(stage, ())


@dataclass(frozen=True, kw_only=True)
class PretextRecord:
    """A pretext task: its model, its data, its recipe.

    Attributes:
        title: its name and paper.
        build: (args, detector) -> a module ``forward(batch) -> (loss, logs)`` around the detector.
        num_classes: what the detector's class head tells apart, "no object" not counted.
        classification: of that head; None: the detector's own.
        dataset: class of the data set, see :class:`datasets.pretext_samples.PretextDataset`.
        build_transform: (args, options that all transforms share) -> what the data set makes samples with.
        collate: list of samples -> batch.
        flags: its own flags.
        defaults: its recipe where it differs from the usual one and from the flags' own defaults, whatever the
            detector; see ``pretraining`` of :class:`DetectorRecord`.
        recipes: ``--recipe`` -> values of flags, its own or of all tasks, which replace the paper's.
        check: (args, number of processes) raises UserError for values of its flags that do not go together.
        warning: args -> what the user should know before training starts; None: nothing.
        detects_alone: its detector detects by itself; otherwise it must be shown what to find.
        foreign_kind: names in a checkpoint of another project -> what it is called if this task made it, else None.
            The first task that knows it has the say.
        heads: beginnings of the names of parameters that are the task's and not the detector's.
        public_name: a name in such a checkpoint -> the public name.
    """

    title: str
    build: Callable[[argparse.Namespace, Any], Any]
    num_classes: int
    classification: Classification | None
    dataset: type
    build_transform: Callable[[argparse.Namespace, dict[str, Any]], Callable]
    collate: Callable[[list], Any]
    flags: tuple[Flag, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    check: Callable[[argparse.Namespace, int], None] = _no_check
    warning: Callable[[argparse.Namespace], str | None] = lambda args: None
    detects_alone: bool = False
    foreign_kind: Callable[[Collection[str]], str | None] = lambda names: None
    heads: tuple[str, ...] = ()
    public_name: Callable[[str], str] = _as_it_is

    def flags_in(self, stage: Stage) -> tuple[Flag, ...]:
        """Its own flags; tasks are chosen in pretraining alone."""
        return self.flags


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """A data format: how it is read, and how one pretrains on it.

    Attributes:
        title: what it is.
        read_labelled: (args, split, categories or None) -> :class:`datasets.records.DetectionRecords`; None: it has no
            labels. ``categories`` are those of the training set, which an evaluation must keep to.
        read_unlabelled: (args, split) -> :class:`datasets.image_folder.UnlabelledImages`.
        splits: "train" and perhaps "val".
        flags: its own flags in each script.
        find: (args, :class:`datasets.tree.Tree` of ``--data_path`` or None) -> :class:`datasets.layout.Layout`, or None
            where the data set is not there in this format; what ``--dataset_file auto`` goes by. None: it is never
            recognised and has all its splits.
        looks: the layouts that ``find`` knows, a line each, for the message where there is none.
        check: (args, splits that will be read) raises UserError where its flags do not say where the labelled data is;
            None: ``--data_path`` must.
        scales, max_size, max_steps: image sizes in pixels and length of pretraining.
        pretraining: name of a pretext task -> its recipe where it is another on these data, whatever the detector.
    """

    title: str
    read_labelled: Callable[..., Any] | None
    read_unlabelled: Callable[[argparse.Namespace, str], Any]
    splits: tuple[str, ...] = ("train", "val")
    find: Callable[[argparse.Namespace, Any], Any] | None = None
    looks: Sequence[str] = ()
    flags: Mapping[Stage, tuple[Flag, ...]] = field(default_factory=dict)
    check: Callable[[argparse.Namespace, Sequence[str]], None] | None = None
    scales: Sequence[int] = SMALL_SCALES
    max_size: int = 600
    max_steps: int = 300_000
    pretraining: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def flags_in(self, stage: Stage) -> tuple[Flag, ...]:
        """Its own flags in this script."""
        return self.flags.get(stage, ())


Record = DataRecord | DetectorRecord | PretextRecord
AnyRecord = TypeVar("AnyRecord", DataRecord, DetectorRecord, PretextRecord)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a script lets the user choose by name; the first of each is the default.

    Attributes:
        stage: which script it is.
        datasets, detectors, pretexts: the values of ``--dataset_file``, ``--detr`` and ``--method``; empty where the
            script has no such flag.
    """

    stage: Stage
    datasets: Mapping[str, DataRecord]
    detectors: Mapping[str, DetectorRecord] = field(default_factory=dict)
    pretexts: Mapping[str, PretextRecord] = field(default_factory=dict)

    def tables(self) -> dict[str, Mapping[str, Record]]:
        """The flags that choose, each with its records."""
        tables = {"dataset_file": self.datasets, "detr": self.detectors, "method": self.pretexts}
        return {option: records for option, records in tables.items() if records}

    def owners(self, option: str) -> dict[str, tuple[Flag, list[str]]]:
        """Name of each flag that records of ``option`` own -> the flag and the names of these records.

        Raises:
            ValueError: two records have different flags of one name, an error in the code.
        """
        found: dict[str, tuple[Flag, list[str]]] = {}
        for name, record in self.tables()[option].items():
            for flag in record.flags_in(self.stage):
                known, names = found.setdefault(flag.name, (flag, []))
                if known is not flag:
                    raise ValueError(f"--{flag.name} of {name} is another flag than that of {', '.join(names)}")
                names.append(name)
        return found
