"""Write a detector as one file that runs without this project.

python tools/export.py --resume FILE detector.onnx --dynamic      # any number and size of images, with their mask
python tools/export.py --resume FILE detector.onnx --size 800 1066    # one image of this height and width, no mask
python tools/export.py --resume FILE detector.pt2 --dynamic       # for torch.export.load

The file takes pixel_values [B, 3, H, W] (RGB in [0, 1], less the mean, over the standard deviation of the file's
metadata) and, with --dynamic, mask [B, H, W] (True where padded). It returns the detections, best first: boxes
[B, N, 4] (x1, y1, x2, y2 as fractions of each image's width and height), scores [B, N] and labels [B, N]; the metadata
names the labels. A .pt2 file of a detector on four levels of maps wants images of more than 64 pixels a side.
tools/run_onnx.py is an example that needs onnxruntime, numpy and Pillow alone.
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
from util.script import run_script
from util.untold_args import add_untold_arguments


def main(argv: list[str] | None = None) -> None:
    """Load, write, compare."""
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
    print(f"wrote {target}: {target.stat().st_size / 2**20:.1f} MiB; equal to {worst:.1g} on images of {sizes}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments that can work.

    Raises:
        UserError: one of them cannot, or a package is missing.
    """
    args = make_parser().parse_args(argv)
    target = Path(args.target)
    if target.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{target}: unknown kind of file, use .onnx or .pt2")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    if target.suffix == ".onnx":
        for package in INSTALL.split():
            require(package, INSTALL, "exporting to ONNX")
    if (args.size is None) != args.dynamic:
        raise UserError("the file is either for images of one size (--size H W) or for any (--dynamic): choose one")
    args.height, args.width = args.size or (None, None)
    at_least(args, 32, "height", "width")
    return args


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("target", metavar="OUT", help="the .onnx or .pt2 file to write")
    parser.add_argument("--resume", required=True, metavar="FILE|FOLDER", help="any checkpoint that can predict")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="one image of this size, no mask")
    parser.add_argument("--dynamic", action="store_true", help="any batch, height and width, with the mask")
    parser.add_argument("--half", action="store_true", help="keep weights in 16 bits, compute in float32")
    parser.add_argument(
        "--check", nargs="+", default=[], metavar="IMAGE", help="compare on these images; default: two drawn ones"
    )
    add_untold_arguments(parser)
    return parser


def load(args: argparse.Namespace) -> Predictor:
    """The detector, on the CPU; with ``--half`` its weights are rounded as the file's are."""
    restored = restore(args.resume, {name: getattr(args, name) for name in UNTOLD})
    predictor = predictor_of(restored, device="cpu", amp="none", eval_size=None, eval_max_size=None)
    if args.half:
        round_to_half(predictor)
    return predictor


@torch.no_grad()
def round_to_half(predictor: Predictor) -> None:
    """Round the weights of a detector as a file with ``--half`` has them."""
    for weight in predictor.detector.parameters():
        if weight.dim() > 1:
            weight.copy_(weight.half())


def describe(predictor: Predictor, args: argparse.Namespace) -> dict:
    """What a user of the file must know beside it."""
    mean, std = predictor.normalization
    sizes = (
        {"size": args.size} if args.size else {"short_side": predictor.eval_size, "max_size": predictor.eval_max_size}
    )
    names = {str(label): category["name"] for label, category in predictor.categories.items()}
    return {"names": names, "mean": list(mean), "std": list(std), **sizes}


if __name__ == "__main__":
    run_script(main)
