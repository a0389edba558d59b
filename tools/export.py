"""Write a detector as one file that runs without this project.

python tools/export.py --resume FILE detector.onnx --dynamic      # any number and size of images, with their mask
python tools/export.py --resume FILE detector.onnx --size 800 1066    # one image of this height and width, no mask
python tools/export.py --resume FILE detector.pt2 --dynamic       # for torch.export.load

The file takes pixel_values [B, 3, H, W] (RGB in [0, 1], minus the mean and divided by the standard deviation, which are
in the file's metadata) and, with --dynamic, mask [B, H, W] (True where padded). It returns the detections, best first:
boxes [B, N, 4] (x1, y1, x2, y2 as fractions of each image's width and height), scores [B, N] and labels [B, N]; the
metadata has the names of the labels. The images for a .pt2 file of a detector with four feature levels must be larger
than 64 x 64 pixels. tools/run_onnx.py is an example that needs only onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from models.checkpoints.open import UNTOLD, restore
from models.predictor import Predictor, predictor_of
from tools.exporting.check import as_tensor, check_batches, compare, load_check_images, open_file
from tools.exporting.form import ExportForm
from tools.exporting.write import INSTALL, program_of, write_onnx, write_pt2
from util.check_args import at_least
from util.errors import UserError
from util.optional import require
from util.parser import DocFormatter, Parser
from util.script import run_script
from util.untold_args import add_untold_arguments


def main(argv: list[str] | None = None) -> None:
    """Load the detector, write the file, compare both."""
    args = parse(argv)
    target = Path(args.target)
    predictor = load(args)
    batches = check_batches(predictor, load_check_images(args.check), args.size)
    inputs = as_tensor(batches[-1], takes_mask=args.dynamic)
    form = ExportForm(
        predictor.detector, predictor.postprocess, standard_sampling=target.suffix == ".onnx", half=args.half
    )
    program = program_of(form.eval(), inputs, dynamic=args.dynamic)
    if target.suffix == ".onnx":
        write_onnx(program, inputs, target, describe(predictor, args))
    else:
        write_pt2(program, target, describe(predictor, args))
    try:
        worst = compare(open_file(target, takes_mask=args.dynamic), predictor, batches)
    except UserError:
        target.unlink()
        raise
    sizes = ", ".join("x".join(map(str, batch.tensors.shape)) for batch in batches)
    size = target.stat().st_size / 2**20
    print(f"wrote {target}: {size:.1f} MiB; equal to the detector up to {worst:.1g} on images of {sizes}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the arguments.

    Raises:
        UserError: an argument cannot work, or a package is missing.
    """
    args = make_parser().parse_args(argv)
    target = Path(args.target)
    if target.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{target}: unknown file format; use .onnx or .pt2")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; create it first")
    if target.suffix == ".onnx":
        for package in INSTALL.split():
            require(package, INSTALL, "exporting to ONNX")
    if (args.size is None) != args.dynamic:
        raise UserError("pass --size H W (images of one size) or --dynamic (images of any size): choose one")
    args.height, args.width = args.size or (None, None)
    at_least(args, 32, "height", "width")
    return args


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser("export.py", description=__doc__, formatter_class=DocFormatter, allow_abbrev=False)
    parser.add_argument("target", metavar="OUT", help="the .onnx or .pt2 file to write")
    parser.add_argument("--resume", required=True, metavar="FILE|FOLDER", help="any checkpoint that can predict")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="one image of this size, no mask")
    parser.add_argument("--dynamic", action="store_true", help="images of any number, height and width, with a mask")
    parser.add_argument("--half", action="store_true", help="store weights in 16 bits, compute in float32")
    parser.add_argument(
        "--check", nargs="+", default=[], metavar="IMAGE", help="images to compare on; default: two synthetic ones"
    )
    add_untold_arguments(parser)
    return parser


def load(args: argparse.Namespace) -> Predictor:
    """The detector, on the CPU; with ``--half`` its weights are rounded to 16 bits, as in the file."""
    restored = restore(args.resume, {name: getattr(args, name) for name in UNTOLD})
    predictor = predictor_of(restored, device="cpu", amp="none", eval_size=None, eval_max_size=None)
    if args.half:
        round_to_half(predictor)
    return predictor


@torch.no_grad()
def round_to_half(predictor: Predictor) -> None:
    """Round the weights of a detector to 16 bits, as in a file written with ``--half``."""
    for weight in predictor.detector.parameters():
        if weight.dim() > 1:
            weight.copy_(weight.half())


def describe(predictor: Predictor, args: argparse.Namespace) -> dict:
    """The file's metadata: what a user of the file must know."""
    mean, std = predictor.normalization
    sizes = (
        {"size": args.size} if args.size else {"short_side": predictor.eval_size, "max_size": predictor.eval_max_size}
    )
    names = {str(label): category["name"] for label, category in predictor.categories.items()}
    return {"names": names, "mean": list(mean), "std": list(std), **sizes}


if __name__ == "__main__":
    run_script(main)
