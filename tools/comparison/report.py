"""Scores of the finetuning runs as a table (Markdown, JSON) and as a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.comparison.specification import Run
from util.errors import UserError
from util.files import write_json, write_text
from util.inputs import Unreadable, read_json
from util.optional import require
from util.plot_utils import save_figure

SCORES = ("AP", "AP50")
HEADER = "| finetuned on | detector | method | pretrained on | seeds | AP | AP50 |\n|---|---|---|---|---|---|---|"


def collect(runs: list[Run], out: Path) -> list[dict[str, Any]]:
    """One row per finetuning set, detector and method, in the order of the specification.

    Returns:
        ``{"finetune", "detector", "method", "pretrain" (None: without), "seeds": [...], "AP": [...], "AP50": [...]}``,
        scores in 0..1, one per seed.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for run in runs:
        if "finetune" not in run.labels:
            continue
        key = {name: run.labels[name] for name in ("finetune", "detector", "method", "pretrain")}
        row = rows.setdefault(tuple(key.values()), {**key, "seeds": [], **{score: [] for score in SCORES}})
        scores = _scores(out / run.name / "eval.json")
        row["seeds"].append(run.labels["seed"])
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
        lines.append(f"| {' | '.join([*cells, *(mean_and_spread(row[score]) for score in SCORES)])} |")
    return "\n".join(lines) + "\n"


def mean_and_spread(values: list[float]) -> str:
    """Fractions -> text in percent: the mean, and the spread if there are several values."""
    text = f"{100 * mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * stdev(values):.1f}"


def write_report(runs: list[Run], out: Path) -> str:
    """Write table.md, table.json and plot.png to ``out``; returns the table."""
    rows = collect(runs, out)
    table = as_markdown(rows)
    write_text(table, out / "table.md")
    write_json(rows, out / "table.json")
    plot(rows, out / "plot.png")
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


def _start_of(row: dict[str, Any]) -> str:
    return row["method"] if row["pretrain"] is None else f"{row['method']} ({row['pretrain']})"
