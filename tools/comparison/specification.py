"""Reads a specification and makes the list of runs of both scripts."""

from __future__ import annotations

import os
import reprlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import PRETEXTS
from util.errors import UserError
from util.inputs import NotJson, Unreadable, parse_json, read_text

SCRATCH = "scratch"  # the method without pretraining
EVERY = "all"  # flags that apply to every combination
OPTIONAL = {"common": "", "pretrain_seed": None}
KEYS = {"seeds", "methods", "detectors", "pretrain", "finetune", "data", "backbone_weights", *OPTIONAL}
LISTS = ("seeds", "data")
TABLES = ("methods", "detectors", "pretrain", "finetune")  # name -> flags
COMBINED_WITH = {
    "methods": ("pretrain", "detectors"),
    "detectors": ("pretrain", "finetune", "methods"),
    "pretrain": ("detectors", "methods"),
    "finetune": ("detectors", "methods"),
    "common": TABLES,
}
"""For each table, those whose names may be keys of an entry's flags."""

BUDGET = ("--max_steps", "--epochs", "--batch_size", "--accum_steps")
"""Flags that must be equal for all methods."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of a script.

    Attributes:
        name: path of its output folder below that of the comparison.
        script: main_pretrain.py or main_finetune.py.
        flags: its command line, without the output folder.
        needs: name of the pretraining run whose checkpoint it starts from, or None.
        before: the flags of that pretraining run.
        labels: seed, detector, method, and where they apply pretrain and finetune (names of data sets).
    """

    name: str
    script: str
    flags: tuple[str, ...]
    needs: str | None
    before: tuple[str, ...] = ()
    labels: dict[str, Any] = field(compare=False)


def read_specification(path: str | Path) -> dict[str, Any]:
    """Read a specification (JSON, see ``tools/compare.py``) and replace environment variables.

    Raises:
        UserError: it cannot be read, an entry is missing, unknown or malformed, or an environment variable is not set.
    """
    try:
        content = parse_json(read_text(path))
    except NotJson as error:
        raise UserError(f"{path}: {error}") from None
    except Unreadable as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object with the keys {', '.join(sorted(KEYS))}")
    content = OPTIONAL | content
    if content.keys() != KEYS:
        wrong = sorted(KEYS ^ content.keys())[0]
        raise UserError(f'{path}: "{wrong}" is {"missing" if wrong in KEYS else "not a key of a specification"}')
    _check_kinds(content, path)
    _check_names(content, path)
    for pair in content["data"]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            told = reprlib.repr(pair)
            raise UserError(f'{path}: "data" holds pairs [name in "pretrain", name in "finetune"], not {told}')
    content = _expand(content, path)
    for pair in content["data"]:
        for name, kind in zip(pair, ("pretrain", "finetune"), strict=True):
            if name not in content[kind]:
                raise UserError(f'{path}: "data" names {name}, which is not in "{kind}"')
    for method in content["methods"]:
        _check_budget(content, method, path)
    return content


def _check_kinds(content: dict[str, Any], path: str | Path) -> None:
    """Raise UserError for a value of another type than ``tools/compare.py`` describes."""
    for name in LISTS + TABLES:
        kind, told = (list, "a list") if name in LISTS else (dict, "an object")
        if not isinstance(content[name], kind) or not content[name]:
            raise UserError(f'{path}: "{name}" must be {told}, and not empty')
    if not all(map(_is_seed, content["seeds"])):
        raise UserError(f'{path}: "seeds" must be whole numbers')
    if content["pretrain_seed"] is not None and not _is_seed(content["pretrain_seed"]):
        raise UserError(f'{path}: "pretrain_seed" must be a whole number')
    if not isinstance(content["backbone_weights"], str):
        raise UserError(f'{path}: "backbone_weights" must be a file name')
    entries = {f"{table}: {name}": entry for table in TABLES for name, entry in content[table].items()}
    for place, entry in {**entries, "common": content["common"]}.items():
        for text in entry.values() if isinstance(entry, dict) else [entry]:
            if not _is_flags(text):
                raise UserError(f'{path}: "{place}" must be flags in one string, or an object of such strings')


def _check_names(content: dict[str, Any], path: str | Path) -> None:
    """Raise UserError for an unknown method, and for flags under a name that is never combined with their entry."""
    known = (SCRATCH, *PRETEXTS)
    for method in content["methods"]:
        if method != SCRATCH and task_of(method) not in PRETEXTS:
            raise UserError(f'{path}: "methods: {method}" is not one of {", ".join(known)}')
    if content["methods"].get(SCRATCH):
        raise UserError(f'{path}: "methods: {SCRATCH}" means no pretraining, so it must have no flags')
    for table, others in COMBINED_WITH.items():
        names = {EVERY}.union(*(content[other] for other in others))
        entries = {table: content[table]} if table == "common" else content[table]
        for entry, flags in entries.items():
            for name in flags if isinstance(flags, dict) else ():
                if name not in names:
                    place = table if entry == table else f"{table}: {entry}"
                    raise UserError(f'{path}: "{place}: {name}" is never used; use {", ".join(sorted(names))}')


def task_of(method: str) -> str:
    """``"siamese-fast"`` -> ``"siamese"``: what follows the first hyphen names a variant of the pretext task."""
    return method.partition("-")[0]


def _is_seed(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_flags(text: Any) -> bool:
    try:
        return isinstance(text, str) and shlex.split(text) is not None
    except ValueError:  # a quote without its partner
        return False


def _expand(value: Any, path: str | Path) -> Any:
    """``value`` with $NAME and ${NAME} replaced in all its strings."""
    if isinstance(value, dict):
        return {name: _expand(item, path) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise UserError(f"{path}: an environment variable in {expanded!r} is not set")
    return expanded


def _check_budget(content: dict[str, Any], method: str, path: str | Path) -> None:
    """Raise UserError if a flag of the budget applies to one method only."""
    own = content["methods"][method]
    texts = list(own.values()) if isinstance(own, dict) else [own]
    shared = [entry for table in ("detectors", "pretrain", "finetune") for entry in content[table].values()]
    texts += [entry.get(method, "") for entry in [*shared, content["common"]] if isinstance(entry, dict)]
    unequal = [word for text in texts for word in shlex.split(text) if word.partition("=")[0] in BUDGET]
    if unequal:
        raise UserError(
            f"{path}: {unequal[0]} of method {method}: all methods must have one budget; set it where it applies to all"
        )


def make_runs(specification: dict[str, Any]) -> list[Run]:
    """All runs, seed by seed; pretraining runs come before the finetuning runs that need them.

    One pretraining run serves all finetuning sets that it is paired with, and with "pretrain_seed" all seeds. Without
    pretraining there is one run per finetuning set and seed.
    """
    runs: dict[str, Run] = {}
    for seed in specification["seeds"]:
        of_seed = _runs_of(specification, seed)
        runs |= {
            run.name: run for run in sorted(of_seed, key=lambda run: run.needs is not None) if run.name not in runs
        }
    return list(runs.values())


def _runs_of(specification: dict[str, Any], seed: int) -> list[Run]:
    """The runs that finetuning with ``seed`` takes; some occur more than once."""
    runs = []
    shared = specification["pretrain_seed"]
    for pretrain_set, finetune_set in specification["data"]:
        for detector in specification["detectors"]:
            for method in specification["methods"]:
                pretraining = None
                if method != SCRATCH:
                    pretrain_seed = seed if shared is None else shared
                    pretraining = _pretraining(specification, pretrain_set, detector, method, pretrain_seed)
                    runs.append(pretraining)
                runs.append(_finetuning(specification, pretraining, finetune_set, detector, seed))
    return runs


def _pretraining(specification: dict[str, Any], data: str, detector: str, method: str, seed: int) -> Run:
    names = (data, detector, method)
    return Run(
        name=f"pretrain/{data}/{detector}/{method}/seed{seed}",
        script="main_pretrain.py",
        flags=(
            *("--method", task_of(method)),
            *_flags(specification["detectors"][detector], *names),
            *("--backbone_weights", specification["backbone_weights"]),
            *_flags(specification["pretrain"][data], *names),
            *_flags(specification["methods"][method], *names),
            *_flags(specification["common"], *names),
            *("--seed", str(seed)),
        ),
        needs=None,
        labels={"seed": seed, "detector": detector, "method": method, "pretrain": data},
    )


def _finetuning(specification: dict[str, Any], pretraining: Run | None, data: str, detector: str, seed: int) -> Run:
    """Finetuning after ``pretraining``, or from the backbone's weights only."""
    start = () if pretraining else ("--backbone_weights", specification["backbone_weights"])
    labels = {"pretrain": None, "method": SCRATCH} if pretraining is None else pretraining.labels
    origin = f"{labels['method']}_{labels['pretrain']}" if pretraining else SCRATCH
    names = (data, detector, labels["method"])
    return Run(
        name=f"finetune/{data}/{detector}/{origin}/seed{seed}",
        script="main_finetune.py",
        flags=(
            *("--recipe", "paper"),
            *_flags(specification["detectors"][detector], *names),
            *start,
            *_flags(specification["finetune"][data], *names),
            *_flags(specification["common"], *names),
            *("--seed", str(seed)),
        ),
        needs=pretraining.name if pretraining else None,
        before=pretraining.flags if pretraining else (),
        labels={**labels, "seed": seed, "detector": detector, "finetune": data},
    )


def _flags(entry: str | dict[str, str], *names: str) -> list[str]:
    """An entry's flags: all of a string; of an object, those under "all" and under ``names``."""
    if isinstance(entry, str):
        return shlex.split(entry)
    return [flag for name in (EVERY, *names) for flag in shlex.split(entry.get(name, ""))]
