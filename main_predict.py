"""Detect objects in images without annotations: boxes as JSON, as a table and on pictures."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from datasets.images import Reading
from datasets.inference import (
    Failure,
    FoundImage,
    InferenceBatch,
    InferenceDataset,
    SortedBatchSampler,
    collate_inference,
    find_images,
    picture_names,
)
from datasets.loader import make_loader
from models.checkpoints.open import UNTOLD, restore
from models.detections import Detections
from models.finder import RegionFinder
from models.predictor import MAX_DETECTIONS, THRESHOLD, Predictor, predictor_of
from util.args import add_image_file_arguments
from util.check_args import at_least
from util.checkpoint import make_writable
from util.errors import DataError, UserError
from util.logger import say, shows_progress
from util.parser import Parser
from util.plot_utils import save_picture
from util.precision import AMP_HELP, AMP_TYPES
from util.prediction_files import RESULTS, ImageRecord, PredictionJournal, write_results
from util.run_lock import locked
from util.script import run_script
from util.untold_args import add_untold_arguments

PICTURES = "pictures"
PICTURE_KINDS = (".jpg", ".jpeg", ".png")


def main(argv: list[str] | None = None) -> None:
    """Arguments -> images, detector -> detections of each image -> files.

    Raises:
        UserError: some images could not be read; the others are done.
    """
    args = parse(argv)
    images = find_images(args.images)
    predictor = build_predictor(args)
    folder = Path(args.output_dir)
    make_writable(folder)
    with locked(folder):
        ids = {category["id"] for category in predictor.categories.values()}
        journal = PredictionJournal(folder, settings_of(args, predictor), ids)
        failures = predict(predictor, images, journal, args)
        journal.close()
        finish(predictor, images, journal, failures, args)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        "main_predict.py",
        description="Detect objects in images; the same command goes on after it was stopped. Videos: extract their "
        "frames first (ffmpeg -i VIDEO frames/%%06d.jpg).",
        usage="%(prog)s IMAGES [IMAGES ...] --resume FILE|FOLDER [--FLAG VALUE ...]",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, folders, patterns ('photos/**/*.jpg'), @list.txt"
    )
    parser.add_argument(
        "--resume", required=True, metavar="FILE|FOLDER", help="any checkpoint that main_finetune.py --eval takes, or "
        "one of pretraining by detreg; with --query one of siamese or updetr",
    )  # fmt: skip
    parser.add_argument(
        "--output_dir",
        default="predictions",
        help="receives predictions.json, .csv and pictures/; default: predictions",
    )
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="lowest score to keep; default: 0.5")
    parser.add_argument("--max_detections", type=int, default=MAX_DETECTIONS, help="most in one image; default: 100")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="detect only these classes")
    parser.add_argument(
        "--query", nargs=5, action="append", metavar=("IMAGE", "X1", "Y1", "X2", "Y2"),
        help="find the region that looks like this one of IMAGE (corners in pixels); may be given several times",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=1, help="images at once, sorted by size; default: 1")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read images; default: 2")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one"
    )
    parser.add_argument("--amp", choices=list(AMP_TYPES), default="none", help=AMP_HELP)
    parser.add_argument("--eval_size", type=int, help="short side of resized images; default: the checkpoint's")
    parser.add_argument("--eval_max_size", type=int, help="limit of their long side; default: the checkpoint's")
    parser.add_argument("--no_pictures", action="store_true", help="write no pictures")
    add_image_file_arguments(parser)
    add_untold_arguments(parser)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments that can work.

    Raises:
        UserError: one of them cannot.
    """
    args = make_parser().parse_intermixed_args(argv)
    at_least(args, 1, "max_detections", "batch_size", "eval_size", "eval_max_size", "max_image_pixels")
    at_least(args, 0, "num_workers")
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: must lie in [0, 1]")
    if args.query and args.classes:
        raise UserError("--classes names what a detector was trained for; with --query leave it out")
    for query in args.query or []:
        try:
            query[1:] = map(float, query[1:])
        except ValueError:
            raise UserError(f"--query {' '.join(map(str, query))}: X1 Y1 X2 Y2 must be numbers of pixels") from None
    return args


def build_predictor(args: argparse.Namespace) -> Predictor:
    """The detector of ``--resume``, or what finds the regions of ``--query``.

    Raises:
        UserError: the checkpoint cannot do what is asked, an unknown class, a query outside its image.
    """
    restored = restore(args.resume, {name: getattr(args, name) for name in UNTOLD})
    reading = Reading(args.max_image_pixels, args.allow_truncated)
    computing = {"device": args.device, "amp": args.amp, "reading": reading}
    sizes = {"eval_size": args.eval_size, "eval_max_size": args.eval_max_size}
    if args.query:
        finder = RegionFinder(restored, **computing, **sizes)
        for path, *box in args.query:
            finder.show(path, tuple(box))
        return finder
    predictor = predictor_of(restored, **computing, **sizes, max_detections=args.max_detections)
    if args.classes:
        predictor.only(args.classes)
    return predictor


def settings_of(args: argparse.Namespace, predictor: Predictor) -> dict:
    """What decides the results; a run goes on only where all of it is the same."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(predictor.detector.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "detector": digest.hexdigest(),
        "images": args.images,
        "threshold": args.threshold,
        "max_detections": args.max_detections,
        "classes": args.classes,
        "query": args.query,
        "eval_size": predictor.eval_size,
        "eval_max_size": predictor.eval_max_size,
        "amp": args.amp,
        "allow_truncated": args.allow_truncated,
        "pictures": not args.no_pictures,
    }


def predict(
    predictor: Predictor, images: Sequence[FoundImage], journal: PredictionJournal, args: argparse.Namespace
) -> list[Failure]:
    """Detect in all images that the journal does not have yet; returns those that cannot be read."""
    paths = [image.path for image in images]
    wanted = {index for index, path in enumerate(paths) if path not in journal.done}
    if len(wanted) < len(paths):
        say(f"{args.output_dir}: {len(paths) - len(wanted)} of {len(paths)} images are done already")
    pictures = None if args.no_pictures else PictureFolder(Path(args.output_dir) / PICTURES, images)
    loader = make_loader(
        InferenceDataset(paths, predictor.prepare, predictor.reading),
        SortedBatchSampler(paths, wanted, args.batch_size, predictor.resized, predictor.reading),
        collate_inference,
        num_workers=min(args.num_workers, len(wanted)),
        pin_memory=predictor.device.type == "cuda",
    )
    failures: list[Failure] = []
    bar = tqdm(
        total=len(paths), initial=len(paths) - len(wanted), unit="image", dynamic_ncols=True,
        disable=not shows_progress(),
    )  # fmt: skip
    start = time.perf_counter()
    for batch in loader:
        records, failed = predict_batch(predictor, batch, paths, pictures, args)
        journal.add(records)
        failures += failed
        bar.update(len(records) + len(failed))
    bar.close()
    if wanted:
        seconds = time.perf_counter() - start
        say(f"{len(wanted)} images in {seconds:.1f} s, {len(wanted) / seconds:.3g} images/s")
    return sorted(failures, key=lambda failed: failed.index)


def predict_batch(
    predictor: Predictor,
    batch: InferenceBatch,
    paths: Sequence[str],
    pictures: PictureFolder | None,
    args: argparse.Namespace,
) -> tuple[list[ImageRecord], list[Failure]]:
    """Detect in a batch and draw it: what was found in each image, and the images that cannot be read."""
    records, failed = [], list(batch.failures)
    results = predictor.detect(batch.images, batch.sizes) if batch.indices else []
    for index, (height, width), result in zip(batch.indices, batch.sizes.tolist(), results, strict=True):
        detections = predictor.finish(
            result, (width, height), paths[index], threshold=args.threshold, max_detections=args.max_detections
        )
        try:
            if pictures is not None:
                pictures.save(index, predictor.draw(detections))
        except DataError as error:  # changed or gone since it was read
            failed.append(Failure(index, str(error)))
        else:
            records.append(record_of(detections))
    return records, failed


def record_of(detections: Detections) -> ImageRecord:
    """What the journal keeps: scores to 6 decimals, corners to a thousandth of a pixel."""
    width, height = detections.size
    rows = zip(detections.category_ids, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    found = [[category_id, round(score, 6), *(round(x, 3) for x in box)] for category_id, score, box in rows]
    return ImageRecord(str(detections.image), width, height, found)


class PictureFolder:
    """``pictures/``: one picture for each image, under the image's name."""

    def __init__(self, folder: Path, images: Sequence[FoundImage]) -> None:
        self._folder = folder
        self._names = picture_names(images)

    def save(self, index: int, picture: object) -> None:
        """Write the picture of the image with this index; other kinds than JPEG and PNG get ``.png`` appended."""
        name = self._names[index]
        path = self._folder / (name if name.lower().endswith(PICTURE_KINDS) else f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, path)


def finish(
    predictor: Predictor,
    images: Sequence[FoundImage],
    journal: PredictionJournal,
    failures: list[Failure],
    args: argparse.Namespace,
) -> None:
    """Write the results and list the images that could not be read.

    Raises:
        UserError: there are such images.
    """
    files = [image.path for image in images]
    failed = [{"file_name": files[failure.index], "reason": failure.reason} for failure in failures]
    info = {"checkpoint": args.resume, "threshold": args.threshold, "failed": failed}
    categories = [{"id": category["id"], "name": category["name"]} for category in predictor.categories.values()]
    count = write_results(Path(args.output_dir), journal, files, categories, info)
    say(f"wrote {args.output_dir}/{RESULTS}: {count} detections in {len(files) - len(failed)} images")
    if failed:
        for failure in failures:
            say(f"  {failure.reason}")
        raise UserError(f"{len(failed)} of {len(files)} images could not be read, as listed above; the others are done")


if __name__ == "__main__":
    run_script(main, "interrupted; the same command goes on where it stopped")
