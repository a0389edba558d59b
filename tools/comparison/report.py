"""Scores of the finetuning runs as a table (Markdown, JSON) and as plots."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.comparison.specification import SCRATCH, Run
from util.errors import UserError
from util.files import write_json, write_text
from util.inputs import Unreadable, read_json
from util.optional import require
from util.plot_utils import curves, read_log, save_figure

SCORES = ("AP", "AP50")
HEADER = (
    "| finetuned on | detector | method | pretrained on | seeds | AP | AP50 | steps until the AP of scratch |\n"
    "|---|---|---|---|---|---|---|---|"
)


def collect(runs: list[Run], out: Path) -> list[dict[str, Any]]:
    """One row per finetuning set, detector and method, in the order of the specification.

    Returns:
        ``{"finetune", "detector", "method", "pretrain" (None: without), "seeds": [...], "AP": [...], "AP50": [...],
        "over_steps": [...]}``, one entry per seed: scores in 0..1 at the end, and
        ``{"AP": [[step, ...], [score, ...]], "AP50": ...}`` of all its evaluations.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for run in runs:
        if "finetune" not in run.labels:
            continue
        key = {name: run.labels[name] for name in ("finetune", "detector", "method", "pretrain")}
        row = rows.setdefault(
            tuple(key.values()), {**key, "seeds": [], **{score: [] for score in SCORES}, "over_steps": []}
        )
        scores = _scores(out / run.name / "eval.json")
        row["seeds"].append(run.labels["seed"])
        over_steps = curves(read_log(out / run.name / "log.txt"))
        row["over_steps"].append({score: over_steps[score] for score in SCORES})
        for score in SCORES:
            row[score].append(scores[score])
    sets, detectors = (list(dict.fromkeys(row[name] for row in rows.values())) for name in ("finetune", "detector"))
    return sorted(rows.values(), key=lambda row: (sets.index(row["finetune"]), detectors.index(row["detector"])))


def _scores(path: Path) -> dict[str, float]:
    """The scores in an eval.json; raises UserError if it is not one."""
    try:
        scores = read_json(path)
    except Unreadable as error:
        raise UserError(f"{path}: {error}; remove {path.parent} to run it again") from None
    if not isinstance(scores, dict) or not all(isinstance(scores.get(score), int | float) for score in SCORES):
        raise UserError(f"{path}: not the scores of an evaluation; remove {path.parent} to run it again")
    return scores


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table: mean over seeds in percent, ± the sample standard deviation."""
    lines = [HEADER]
    for row in rows:
        cells = [row["finetune"], row["detector"], row["method"], row["pretrain"] or "-", str(len(row["seeds"]))]
        cells += [mean_and_spread(row[score]) for score in SCORES]
        lines.append(f"| {' | '.join([*cells, steps_until(row, _scratch_of(row, rows))])} |")
    return "\n".join(lines) + "\n"


def steps_until(row: dict[str, Any], scratch: dict[str, Any] | None) -> str:
    """Steps until the mean AP over the seeds first reaches the mean with which ``scratch`` ends; "-" for never."""
    if scratch is None:
        return "-"
    steps, means = mean_curve(row, "AP")
    return next((str(step) for step, value in zip(steps, means, strict=True) if value >= mean(scratch["AP"])), "-")


def mean_curve(row: dict[str, Any], score: str) -> tuple[list[int], list[float]]:
    """(steps, means over the seeds); evaluations that not every seed has are left out."""
    of_seeds = [dict(zip(*curve[score], strict=True)) for curve in row["over_steps"]]
    steps = sorted(set.intersection(*(set(curve) for curve in of_seeds)))
    return steps, [mean(curve[step] for curve in of_seeds) for step in steps]


def _scratch_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    same = [other for other in rows if (other["finetune"], other["detector"]) == (row["finetune"], row["detector"])]
    return next((other for other in same if other["method"] == SCRATCH), None)


def mean_and_spread(values: list[float]) -> str:
    """Fractions -> text in percent: the mean, and the spread if there are several values."""
    text = f"{100 * mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * stdev(values):.1f}"


def write_report(runs: list[Run], out: Path) -> str:
    """Write table.md, table.json, plot.png and curves.png to ``out``; returns the table."""
    rows = collect(runs, out)
    table = as_markdown(rows)
    write_text(table, out / "table.md")
    write_json(rows, out / "table.json")
    plot(rows, out / "plot.png")
    plot_over_steps(rows, out / "curves.png")
    return table


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars for the means, dots for the seeds: one column of panels per finetuning set, one row per score.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "matplotlib", "the plot")
    sets = list(dict.fromkeys(row["finetune"] for row in rows))
    figure = figure_module.Figure(figsize=(1.5 + 4.5 * len(sets), 6), layout="constrained")
    panels = figure.subplots(len(SCORES), len(sets), squeeze=False)
    for column, finetune_set in enumerate(sets):
        for line, score in enumerate(SCORES):
            panel = panels[line][column]
            _draw_bars(panel, [row for row in rows if row["finetune"] == finetune_set], score)
            panel.set_title(f"{finetune_set}: {score} (%)", fontsize=10)
    panels[0][0].legend(fontsize=8)
    save_figure(figure, path)


def _draw_bars(panel: Any, rows: list[dict[str, Any]], score: str) -> None:
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    starts = list(dict.fromkeys(_start_of(row) for row in rows))
    width = 0.8 / len(starts)
    for number, start in enumerate(starts):
        own = [row for row in rows if _start_of(row) == start]
        places = [detectors.index(row["detector"]) + width * (number - (len(starts) - 1) / 2) for row in own]
        panel.bar(places, [100 * mean(row[score]) for row in own], width, label=start)
        for place, row in zip(places, own, strict=True):
            panel.plot([place] * len(row[score]), [100 * value for value in row[score]], "k.", markersize=4)
    panel.set_xticks(range(len(detectors)), detectors)


def plot_over_steps(rows: list[dict[str, Any]], path: Path) -> None:
    """AP over the steps of finetuning, one line per start: the mean of the seeds; one panel per set and detector.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "matplotlib", "the plot")
    sets, detectors = (list(dict.fromkeys(row[name] for row in rows)) for name in ("finetune", "detector"))
    figure = figure_module.Figure(figsize=(1.5 + 4.5 * len(sets), 3 * len(detectors)), layout="constrained")
    panels = figure.subplots(len(detectors), len(sets), squeeze=False)
    for row in rows:
        panel = panels[detectors.index(row["detector"])][sets.index(row["finetune"])]
        steps, means = mean_curve(row, "AP")
        panel.plot(steps, [100 * value for value in means], marker=".", label=_start_of(row))
        panel.set(title=f"{row['finetune']}, {row['detector']}: AP (%)", xlabel="step")
    panels[0][0].legend(fontsize=8)
    save_figure(figure, path)


def _start_of(row: dict[str, Any]) -> str:
    return row["method"] if row["pretrain"] is None else f"{row['method']} ({row['pretrain']})"
