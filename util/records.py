"""Records of detectors, pretext tasks and data formats; each has one, at the end of its own file.

The command line, the recipes, the checks and the reading of checkpoints use these records and never test a name. So a
new detector, task or format is one file and one entry in ``DETECTORS``, ``PRETEXTS`` or ``DATASETS``. This module knows
neither models nor data sets: a record builds and reads with plain functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Classification = Literal["softmax", "focal"]
"""softmax: one distribution over the classes, the last one is "no object"; focal: one sigmoid per class."""

Stage = Literal["pretrain", "finetune", "proposals"]
"""The script: main_pretrain.py, main_finetune.py or tools/make_proposals.py."""

NamePairs = Sequence[tuple[str, str]]
"""(theirs, ours) of parameters, see :func:`models.checkpoints.renaming.compile_rules`."""

DETECTION_SCALES = tuple(range(480, 801, 32))
"""Short sides in pixels in DETR's training."""

SMALL_SCALES = (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)
"""Short sides in pixels in the pretraining of UP-DETR, DETReg and Siamese DETR on ImageNet; all omit 384."""


def num_outputs(num_classes: int, classification: Classification) -> int:
    """Outputs of a class head; softmax has one more for "no object"."""
    return num_classes + (classification == "softmax")


SWITCH = {"action": "store_true"}
"""``options`` of a :class:`Flag` without a value."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of the command line that only some detectors, pretext tasks or data formats have.

    If several of them have a flag, their records share one object.

    Attributes:
        name: without the two dashes.
        help: what it does; the default is added.
        options: further arguments of ``add_argument``: type, choices, nargs, metavar, action.
        default: the value if neither the user, nor a checkpoint, nor a recipe sets it.
        least: the smallest allowed value.
        is_place: it is a path; a resumed run may change it.
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
        lr_backbone_pretrained, lr_backbone_scratch: learning rate of the backbone, with and without ``--pretrain``.
        epochs: length of the schedule.
        drop_at: share of the schedule after which learning rates are multiplied by 0.1.
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


def _do_nothing(*_: Any) -> None:
    """For records without a check or without ``tidy``."""


def _one_map(*_: Any) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """The same detector in transformers.

    Attributes:
        model_type: of its configuration, such as "deformable_detr".
        class_name: what its class names begin with, such as "DeformableDetr".
        image_processor: what the name of its image processor begins with; None: ``class_name``.
        names: (theirs, ours) of its parameters, without the backbone's.
        signs: parts of names in its files. A file belongs to the detector with all its signs in it; of several, to the
            one with the most signs.
        name_in_file: name in memory of transformers -> name in its files, in addition to the common rules.
        config: (our arguments, the common configuration) -> the detector's configuration.
        hints: (configuration) -> our arguments that weights do not tell.
        timm_body: what the names of timm's backbones begin with, in its files.
        requires: keys of its configuration with the only value that this project supports.
        sees_levels: our arguments -> whether it uses several maps of the backbone.
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
        build: (args, number of class logits, classification=, train_backbone=) -> the detector with random weights.
            ``train_backbone``: whether the backbone gets gradients.
        classification: in finetuning, and in pretext tasks without a classification.
        finetuning: its recipe.
        flags: its own flags of the architecture; checkpoints keep them.
        training_flags: its own flags of training, by script; the defaults may differ between scripts.
        defaults: its defaults of common flags, if they differ from :data:`util.recipes.COMMON_ARCHITECTURE`, the
            recipes' or the parser's.
        pretraining: name of a pretext task -> what its recipe changes for this detector: values of flags, for example
            ``lr``, ``batch_size``, and ``epochs`` with ``lr_drop`` if the schedule counts epochs.
        check: (args, stage) raises UserError for values of its flags that do not go together.
        rates: part of a parameter's name -> name of the flag that multiplies ``--lr`` for it.
        leaves_unused: args -> whether a training step may leave some of its parameters without a gradient.
        signs: parameters that only it has. A checkpoint belongs to the detector with all its signs in it; of several,
            to the one with the most signs.
        infer: (weights, sizes, known) -> its own flags, and other arguments that its weights tell in another way (None:
            they do not tell it). ``sizes(name)`` is the first dimension of a required parameter; ``known`` is what the
            file or the user says besides the weights.
        public_names: (theirs, ours) of parameters with another name in the public code.
        tidy: (renaming, configuration of Hugging Face or None) converts tensors with this project's names to the form
            of the detector, in place.
        deciding_flags: (regular expression for the beginning of a parameter's name, flags that decide its shape).
        hugging_face: None if transformers does not have it.
    """

    title: str
    build: Callable[..., Any]
    classification: Classification
    finetuning: Finetuning
    flags: tuple[Flag, ...] = ()
    training_flags: Mapping[Stage, tuple[Flag, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    check: Callable[[argparse.Namespace, Stage], None] = _do_nothing
    rates: Mapping[str, str] = field(default_factory=dict)
    leaves_unused: Callable[[argparse.Namespace], bool] = lambda args: False
    signs: tuple[str, ...]
    infer: Callable[[dict[str, Any], Callable[[str], int], dict[str, Any]], dict[str, Any]] = _nothing
    public_names: NamePairs = ()
    tidy: Callable[[Any, dict[str, Any] | None], None] = _do_nothing
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
        num_classes: of the detector's class head, without "no object".
        classification: of the class head; None: the detector's own.
        dataset: class of the data set, see :class:`datasets.pretext.samples.PretextDataset`.
        build_transform: (args, options that all transforms share) -> the transform that makes samples.
        collate: (list of samples, pad_to=) -> batch, height and width being multiples of ``pad_to`` pixels.
        flags: its own flags.
        defaults: what its recipe changes, for all detectors; see ``pretraining`` of :class:`DetectorRecord`.
        recipes: ``--recipe`` -> values of flags that replace the paper's.
        check: (args, number of processes) raises UserError for values of its flags that do not go together.
        warning: args -> a message before training starts; None: no message.
        detects_alone: the pretrained detector detects by itself; otherwise it needs a region as a query.
        foreign_kind: names in a checkpoint of another project -> name of this kind of checkpoint, if the task made it;
            else None. The first task that recognises it decides.
        heads: beginnings of the names of the task's own parameters.
        public_name: name in such a checkpoint -> public name.
    """

    title: str
    build: Callable[[argparse.Namespace, Any], Any]
    num_classes: int
    classification: Classification | None
    dataset: type
    build_transform: Callable[[argparse.Namespace, dict[str, Any]], Callable]
    collate: Callable[..., Any]
    flags: tuple[Flag, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    check: Callable[[argparse.Namespace, int], None] = _do_nothing
    warning: Callable[[argparse.Namespace], str | None] = lambda args: None
    detects_alone: bool = False
    foreign_kind: Callable[[Collection[str]], str | None] = lambda names: None
    heads: tuple[str, ...] = ()
    public_name: Callable[[str], str] = _as_it_is

    def flags_in(self, stage: Stage) -> tuple[Flag, ...]:
        """Its own flags; only pretraining has tasks."""
        return self.flags


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """A data format: how it is read, and the recipe of pretraining on it.

    Attributes:
        title: its name in help texts.
        read_labelled: (args, split, categories or None) -> :class:`datasets.records.DetectionRecords`; None: it has no
            labels. ``categories`` are those of the training set, which an evaluation must use.
        read_unlabelled: (args, split) -> :class:`datasets.image_folder.UnlabelledImages`.
        splits: "train" and perhaps "val".
        flags: its own flags in each script.
        find: (args, :class:`datasets.tree.Tree` of ``--data_path`` or None) -> :class:`datasets.layout.Layout`, or None
            if the data set is not there in this format. ``--dataset_file auto`` asks it. None: the format is never
            recognised and has all its splits.
        looks: the layouts that ``find`` knows, one line each, for the message when there is none.
        check: (args, splits that will be read) raises UserError if its flags do not say where the labelled data are;
            None: ``--data_path`` is needed.
        scales, max_size, max_steps: image sizes in pixels and length of pretraining.
        pretraining: name of a pretext task -> what its recipe changes on these data, for all detectors.
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
    """The choices by name in a script; the first of each is the default.

    Attributes:
        stage: the script.
        datasets, detectors, pretexts: the values of ``--dataset_file``, ``--detr`` and ``--method``; empty: the script
            has no such flag.
    """

    stage: Stage
    datasets: Mapping[str, DataRecord]
    detectors: Mapping[str, DetectorRecord] = field(default_factory=dict)
    pretexts: Mapping[str, PretextRecord] = field(default_factory=dict)

    def tables(self) -> dict[str, Mapping[str, Record]]:
        """These flags, each with its records."""
        tables = {"dataset_file": self.datasets, "detr": self.detectors, "method": self.pretexts}
        return {option: records for option, records in tables.items() if records}

    def owners(self, option: str) -> dict[str, tuple[Flag, list[str]]]:
        """Name of each flag in records of ``option`` -> the flag and the names of these records.

        Raises:
            ValueError: two records have different flags with the same name; the code is wrong.
        """
        found: dict[str, tuple[Flag, list[str]]] = {}
        for name, record in self.tables()[option].items():
            for flag in record.flags_in(self.stage):
                known, names = found.setdefault(flag.name, (flag, []))
                if known is not flag:
                    raise ValueError(f"--{flag.name} of {name} differs from that of {', '.join(names)}")
                names.append(name)
        return found
