"""Draw samples, proposals, detections and training curves.

    python tools/visualize.py views --out views.png --data_path DIR
    python tools/visualize.py proposals --out proposals.png --data_path DIR --proposals edgebox --proposal_dir DIR
    python tools/visualize.py predictions --out found.png --resume OUT/checkpoint.pth --data_path DIR
    python tools/visualize.py pr --out pr.png --resume OUT/checkpoint.pth --data_path DIR
    python tools/visualize.py confusion --out confusion.png --resume OUT/checkpoint.pth --data_path DIR
    python tools/visualize.py worst --out worst.png --resume OUT/checkpoint.pth --data_path DIR
    python tools/visualize.py regions OUT/checkpoint.pth --out regions.png --data_path DIR
    python tools/visualize.py curves --out curves.png PRETRAINED SCRATCH

`views` shows two-view samples as the model sees them: the views, their numbered regions, the crops. `proposals` shows
the best boxes of a folder of proposals, 0 the first. `predictions` shows the best boxes that a finetuned checkpoint
finds in the validation images beside the true ones, and with --beside those of a second checkpoint; of boxes with an
IoU above 0.4 it draws only the best. `pr` draws
precision over recall of each class, `confusion` which class was taken for which, `worst` the images with the most
mistakes; all three at IoU 0.5, the latter two at the score with the best F1, and with the figures as JSON beside the
picture. `regions` shows what a pretrained checkpoint finds in one view for the regions of the other. `curves` draws
losses and scores of runs. `views`, `proposals` and `regions` take all flags of main_pretrain.py, those of detections
all of main_finetune.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main_finetune
import main_pretrain
from datasets.images import load_image
from datasets.pretext.two_view import TwoViewDataset
from models import PRETEXTS
from models.checkpoints.restore import restore_detector
from models.postprocess import PostProcess
from models.predictor import Predictor
from models.run_pictures import draw_views, legible_zoom
from tools.looking.pictures import collect, draw_confusion, draw_curves, draw_worst
from tools.looking.predictions import Found, draw_side_by_side, fitting_threshold, without_overlaps
from tools.region_pictures import draw_regions
from util.check_args import at_least
from util.errors import UserError
from util.parser import DocFormatter, Parser
from util.plot_utils import contact_sheet, draw_boxes, plot_curves, save_picture
from util.script import run_script, select_device


def main(argv: list[str] | None = None) -> None:
    """Draw one picture."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "curves" and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    out = Path(args.out)
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out {out}: unknown image format; use .png or .jpg")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; create it first")
    if hasattr(args, "count"):
        at_least(args, 1, "count")
    if args.command == "proposals":
        at_least(args, 1, "boxes")
    if args.command == "curves":
        plot_curves(name_runs(args.logs), out)
    elif args.command == "views":
        save_picture(draw_views_of(rest, args.count), out)
    elif args.command == "proposals":
        save_picture(draw_proposals(rest, args.count, args.boxes), out)
    elif args.command == "regions":
        save_picture(draw_regions(["--resume", args.checkpoint, *rest], args.count, legible_zoom), out)
    elif args.command == "predictions":
        save_picture(draw_predictions(rest, args.count, args.threshold, args.beside), out)
    else:
        look_closely(args, rest, out)
    print(f"wrote {out}")


def make_parser() -> argparse.ArgumentParser:
    """The flags of this script; all others are passed to the parsers of the main scripts."""
    parser = Parser("visualize.py", description=__doc__, formatter_class=DocFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = {}
    for name, count in (("views", 3), ("proposals", 8), ("predictions", 8), ("regions", 6)):
        pictures[name] = commands.add_parser(name, allow_abbrev=False)
        pictures[name].add_argument("--out", required=True, metavar="FILE", help="PNG or JPEG to write")
        pictures[name].add_argument("--count", type=int, default=count, help="images to show")
    pictures["regions"].add_argument("checkpoint", metavar="CHECKPOINT", help="of main_pretrain.py --method siamese")
    pictures["proposals"].add_argument("--boxes", type=int, default=10, help="boxes to show of each image")
    predictions = pictures["predictions"]
    predictions.add_argument(
        "--threshold", type=float, help="least score of a box to be drawn; default: the one with the best F1 at IoU 0.5"
    )
    predictions.add_argument("--beside", metavar="FILE", help="a second checkpoint to draw to the right")
    for name in ("pr", "confusion", "worst"):
        closer = commands.add_parser(name, allow_abbrev=False)
        closer.add_argument("--out", required=True, metavar="FILE", help="PNG to write, with a .json file beside it")
    closer.add_argument("--count", type=int, default=8, help="images to show")
    curves = commands.add_parser("curves", allow_abbrev=False)
    curves.add_argument("--out", required=True, metavar="FILE", help="PNG to write")
    curves.add_argument(
        "logs", nargs="+", metavar="RUN", help="output folder of a run, which names it, or the log.txt in it"
    )
    return parser


def draw_views_of(argv: Sequence[str], count: int) -> Image.Image:
    """Two-view samples that main_pretrain.py would train on with the flags ``argv``.

    Raises:
        UserError: the flags name another method than Siamese DETR.
    """
    args, _ = main_pretrain.parse(argv)
    if PRETEXTS[args.method].dataset is not TwoViewDataset:
        raise UserError(f"--method {args.method} has no two views to draw; leave it out")
    args.augment_device = "cpu"  # change the colours here, even if training would do it on a GPU
    dataset = main_pretrain.build_dataset(args)
    return draw_views(dataset, some_of(dataset, count), args.proposals)


def draw_proposals(argv: Sequence[str], count: int, num_boxes: int) -> Image.Image:
    """Images that main_pretrain.py would train on with the flags ``argv``, with their best proposals.

    Raises:
        UserError: the flags name no folder of proposals.
    """
    args, _ = main_pretrain.parse(argv)
    if args.proposals == "random":
        raise UserError("nothing to draw: pass --proposals edgebox or selective_search, and --proposal_dir DIR")
    dataset = main_pretrain.build_dataset(args)
    pictures, captions = [], []
    for index in some_of(dataset, count):
        image, boxes = load_image(dataset.images.path(index)), dataset.proposals.boxes(index)
        texts = [str(rank) for rank in range(len(boxes[:num_boxes]))]
        pictures.append(draw_boxes(image, boxes[:num_boxes], texts=texts, zoom=legible_zoom(image)))
        captions.append(f"{args.proposals}, {len(texts)} of {len(boxes)} boxes")
    return contact_sheet(pictures, columns=2, captions=captions)


def some_of(dataset: TwoViewDataset, count: int) -> list[int]:
    """Indices of ``count`` images spread evenly over a data set, or of all images if there are fewer."""
    count = min(count, len(dataset))
    return [index * len(dataset) // count for index in range(count)]


class Evaluated(NamedTuple):
    """A detector from ``checkpoint`` and the validation images to look at."""

    checkpoint: Path
    predictor: Predictor
    loader: DataLoader

    def names(self) -> dict[int, str]:
        """Label -> name of the category."""
        return {label: category["name"] for label, category in self.predictor.categories.items()}

    def files(self) -> list[str]:
        """The images' names."""
        return self.loader.dataset.records.relative_paths()

    def load(self, index: int) -> Image.Image:
        """One of the images, upright."""
        records = self.loader.dataset.records
        return load_image(records.path(index), size=tuple(records.sizes[index].tolist()))


def load_for_evaluation(argv: Sequence[str]) -> Evaluated:
    """The detector and the validation images of main_finetune.py's flags ``argv``."""
    args, origin = main_finetune.parse(["--eval", *argv])
    loader = main_finetune.build_eval_loader(args, origin)
    detector = restore_detector(args, origin)
    predictor = Predictor(
        detector,
        PostProcess(detector.classification),
        loader.dataset.categories,
        backbone=args.backbone,
        device=select_device(args.device),
        amp=args.amp,
        eval_size=args.eval_size,
        eval_max_size=args.eval_max_size,
    )
    return Evaluated(Path(origin.path), predictor, loader)


def look_closely(args: argparse.Namespace, argv: Sequence[str], out: Path) -> None:
    """Precision-recall curves, the confusion matrix or the worst images of main_finetune.py's flags ``argv``."""
    seen = load_for_evaluation(argv)
    cases, names = collect(seen.predictor, seen.loader), seen.names()
    if args.command == "pr":
        draw_curves(cases, names, out)
    elif args.command == "confusion":
        draw_confusion(cases, names, out)
    else:
        draw_worst(cases, names, out, load=seen.load, files=seen.files(), count=args.count, zoom=legible_zoom)


def draw_predictions(
    argv: Sequence[str], count: int, threshold: float | None = None, beside: str | None = None
) -> Image.Image:
    """The first validation images, what the checkpoint of main_finetune.py's flags ``argv`` finds in them, and what
    the checkpoint ``beside`` does.

    Of boxes that overlap by more than MOST_OVERLAP only the best is drawn. Without a ``threshold``, boxes are drawn
    from the score on that has the best F1 on the validation images.
    """
    evaluated = [load_for_evaluation(argv)]
    if beside:
        evaluated.append(load_for_evaluation([*argv, "--resume", beside]))
    found = []
    for name, seen in zip(name_checkpoints([seen.checkpoint for seen in evaluated]), evaluated, strict=True):
        cases = [without_overlaps(case) for case in collect(seen.predictor, seen.loader)]
        least = fitting_threshold(cases, list(seen.names())) if threshold is None else threshold
        found.append(Found(name, cases, least))
    first = evaluated[0]
    return draw_side_by_side(found, first.names(), load=first.load, files=first.files(), count=count)


def name_checkpoints(paths: Sequence[Path]) -> list[str]:
    """What tells checkpoints apart: the folders they lie in, or their paths."""
    folders = [path.resolve().parent.name for path in paths]
    return folders if len(set(folders)) == len(folders) else list(map(str, paths))


def name_runs(logs: Sequence[str]) -> dict[str, str]:
    """Name of each run -> its log. A run is named after its folder, or after the folder's path if names repeat."""
    files = [Path(log) / "log.txt" if Path(log).is_dir() else Path(log) for log in logs]
    folders = [file.resolve().parent for file in files]
    names = [folder.name for folder in folders]
    unique = len(set(names)) == len(names)
    return dict(zip(names if unique else map(str, folders), map(str, files), strict=True))


if __name__ == "__main__":
    run_script(main)
