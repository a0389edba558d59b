"""Convert a checkpoint for other projects; any checkpoint that main_finetune.py takes can be converted.

python tools/convert_checkpoint.py OUT/checkpoint.pth detector.pth --to detr    # {"model": ...} in public names
python tools/convert_checkpoint.py OUT/checkpoint.pth detector/ --to hf         # a folder for from_pretrained
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import DETECTORS
from models.checkpoints.foreign import EVAL_SIZES, read_checkpoint
from models.checkpoints.load import load_origin, num_class_logits
from models.checkpoints.open import UNTOLD
from models.checkpoints.origin import Origin
from models.checkpoints.write import write_hugging_face, write_public
from util.errors import CheckpointError, UserError
from util.parser import DocFormatter, Parser
from util.recipes import adopt, architecture_defaults, architecture_names
from util.script import run_script
from util.untold_args import add_untold_arguments


def main(argv: list[str] | None = None) -> None:
    """Read the checkpoint, load it into a detector (which checks everything), and write it."""
    args = make_parser().parse_args(argv)
    source, target = Path(args.source), Path(args.target)
    if target.exists():
        raise UserError(f"{target} exists already: name another file or folder")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; create it first")
    content, foreign = read_checkpoint(source, {name: getattr(args, name) for name in UNTOLD})
    adopt(args, UNTOLD, content["args"], source)
    num_logits = num_class_logits(content["model"])
    if num_logits is None:
        raise CheckpointError(f"{source}: no detector with a class head in it, so there is nothing to convert")
    names = architecture_names(DETECTORS)
    architecture = {name: content["args"][name] for name in names if name in content["args"]}
    record = DETECTORS[architecture["detr"]]
    built = argparse.Namespace(**{**architecture_defaults(record), "dropout": 0.0, "max_size": 0, **architecture})
    detector = record.build(built, num_logits, classification=record.classification, train_backbone=False)
    report = load_origin(detector, Origin(source, content, resumes=True, foreign=foreign), keep_class_head=True)
    print(report.describe(source))
    try:
        if args.to == "detr":
            sizes = {name: content["args"][name] for name in EVAL_SIZES if name in content["args"]}
            write_public(detector.state_dict(), architecture | sizes, content["categories"], target)
        else:
            eval_size = content["args"].get("eval_size", 800), content["args"].get("eval_max_size", 1333)
            write_hugging_face(detector.state_dict(), architecture, content["categories"], target, eval_size=eval_size)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None
    print(f"wrote {target}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser("convert_checkpoint.py", description=__doc__, formatter_class=DocFormatter)
    parser.add_argument("source", metavar="IN", help="a checkpoint of any project, or a Hugging Face model folder")
    parser.add_argument("target", metavar="OUT", help="the file (detr) or folder (hf) to write")
    parser.add_argument(
        "--to", choices=["detr", "hf"], required=True, help="detr: a .pth file; hf: a folder for transformers"
    )
    add_untold_arguments(parser)
    return parser


if __name__ == "__main__":
    run_script(main)
