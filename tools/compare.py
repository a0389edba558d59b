"""Compare pretext tasks at equal budget: pretraining and finetuning of every combination in a small specification.

    python tools/compare.py configs/comparison.json --output_dir out/comparison --jobs 2

It runs only main_pretrain.py and main_finetune.py. It writes table.md, table.json, plot.png, curves.png and commands.sh
to --output_dir. After an interruption the same command continues: finished runs stay, stopped ones go on.

The specification is a JSON object. Flags are one string, or an object of strings: those under "all" always apply,
those under the name of a data set, detector or method only with it. $NAME is replaced by that environment variable.

    seeds             [1, 2]
    methods           {"scratch": "", "updetr": "", "siamese": flags of main_pretrain.py for this method, no budgets}
                      a hyphen makes a variant: "siamese-fast": "--recipe fast"
    detectors         {"conditional": flags of both scripts that define the detector}
    backbone_weights  file from which pretraining and "scratch" start
    pretrain          {"photos": flags of main_pretrain.py: data, image sizes, schedule}
    finetune          {"raccoon": flags of main_finetune.py, the same after each method; --recipe paper unless they say}
    data              [["photos", "raccoon"]], pairs of a pretraining and the data set to finetune on
    pretrain_seed     1: one pretraining for all seeds of finetuning; each has its own unless this is given
    common            flags of both scripts, such as --num_workers (optional)
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.comparison.execution import execute
from tools.comparison.report import write_report
from tools.comparison.specification import make_runs, read_specification
from util.check_args import at_least
from util.checkpoint import make_writable
from util.optional import require
from util.parser import DocFormatter, Parser
from util.script import run_script


def main(argv: list[str] | None = None) -> None:
    """Specification -> runs -> table and plot."""
    parser = Parser("compare.py", description=__doc__, formatter_class=DocFormatter)
    parser.add_argument("specification", help="JSON file")
    parser.add_argument("--output_dir", required=True, help="receives the folders of all runs, and the report")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at once; they share the cores equally")
    args = parser.parse_args(argv)
    at_least(args, 1, "jobs")
    require("matplotlib", "matplotlib", "the plot")  # before hours of training
    runs = make_runs(read_specification(args.specification))
    out = Path(args.output_dir)
    make_writable(out)
    execute(runs, out, args.jobs)
    print("\n" + write_report(runs, out))
    print(f"{out}/table.md {out}/table.json {out}/plot.png {out}/curves.png {out}/commands.sh")


if __name__ == "__main__":
    run_script(main, "interrupted; the same command continues from here")
