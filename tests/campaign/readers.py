"""Every reader of the project with a complete input; the campaign changes one file of it."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import main_finetune
import main_pretrain
from datasets.images import load_image, load_reduced
from datasets.proposals.journal import Journal, encode, read_journal
from datasets.proposals.store import ProposalStore, write_proposals
from tests.datasets.layouts import SMALL, write_coco_masks, write_voc_folders, write_yolo, write_yolo_folders
from tests.tiny import COMMON, DETECTOR, PRETRAIN, write_data_set, write_voc
from tools import check_data, convert_checkpoint, make_proposals
from tools.comparison.execution import RECORD, is_finished, record_of
from tools.comparison.specification import make_runs, read_specification
from util.checkpoint import load_file, save_file
from util.logger import RunLog, find_evaluation
from util.plot_utils import curves, read_log
from util.prediction_files import ImageRecord, PredictionJournal, write_results

PLAN = {"method": "random", "parameters": {"seed": 0}, "num_images": 3, "fingerprint": "f", "shards": 1}
SPECIFICATION = {
    "seeds": [1], "methods": {"scratch": "", "siamese": "--lr 1e-3"}, "detectors": {"conditional": "--enc_layers 1"},
    "backbone_weights": "b.pth", "pretrain": {"photos": {"all": "--data_path p"}}, "finetune": {"raccoon": "--x y"},
    "data": [["photos", "raccoon"]], "common": "--num_workers 0",
}  # fmt: skip
SETTINGS = {"detector": "d", "images": ["photos"], "threshold": 0.5, "classes": None}
IMAGES = {
    "JPEG": "a.jpg",
    "PNG": "b.png",
    "WEBP": "c.webp",
    "BMP": "d.bmp",
    "TIFF": "e.tif",
    "GIF": "f.gif",
    "PPM": "g.ppm",
}
OWN_DATA = {
    "masks": write_coco_masks,
    "loose_voc": write_voc_folders,
    "yolo": write_yolo,
    "yolo_folders": write_yolo_folders,
}
DETRS = ("vanilla", "conditional", "deformable", "dab")


def make_inputs(root: Path) -> Path:
    """A folder for each kind of input."""
    data = write_data_set(root / "data", num_images=4)
    write_voc(root / "voc", data)
    for name, write in OWN_DATA.items():
        write(root / name, SMALL)
    (root / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for kind, name in IMAGES.items():
        Image.fromarray(pixels).save(root / "images" / name, kind)
    (root / "list").mkdir()
    (root / "list" / "names.txt").write_text("0.png\n1.png\n2.png\n")
    boxes, scores = [np.array([[1, 2, 30, 40]], dtype=np.float32)] * 4, [np.ones(1, dtype=np.float32)] * 4
    names = [f"{n}.png" for n in range(4)]
    write_proposals(root / "proposals", paths=names, boxes=boxes, scores=scores, method="mine", parameters={"a": 1})
    (root / "proposals" / "failed.json").write_text(json.dumps([{"path": "0.png", "reason": "empty"}]))
    (root / "journal").mkdir()
    journal = Journal(root / "journal" / "1-of-1.journal", PLAN)
    for outcome in ((boxes[0], scores[0]), "not an image", (boxes[0][:0], scores[0][:0])):
        journal.append(encode(outcome))
    journal.close()
    (root / "specification").mkdir()
    (root / "specification" / "spec.json").write_text(json.dumps(SPECIFICATION))
    (run, *_) = make_runs(SPECIFICATION)
    folder = root / "state" / run.name
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record_of(run, finished=True)))
    (root / "predictions").mkdir()
    journal = PredictionJournal(root / "predictions", SETTINGS, [1, 2])
    journal.add([ImageRecord(f"{n}.png", 60, 40, [[1 + n % 2, 0.5, 1, 2.5, 30, 40]] * n) for n in range(3)])
    journal.close()
    (root / "log").mkdir()
    lines = [{"kind": "train", "step": n, "loss": 1.0 / n, "lr": 1e-4} for n in range(1, 6)]
    (root / "log" / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _make_checkpoints(root, data)
    return root


def _make_checkpoints(root: Path, data: Path) -> None:
    for detr in DETRS:
        out = root / f"own_{detr}"
        argv = ["--data_path", str(data), *COMMON, *DETECTOR, "--detr", detr, "--max_steps", "1", "--eval_every", "0"]
        main_finetune.main([*argv, "--output_dir", str(out)])
        content = load_file(out / "checkpoint.pth")
        public = root / f"public_{detr}"
        public.mkdir()
        args = argparse.Namespace(nheads=4, dilation=False, dataset_file="own", eval_size=64, eval_max_size=110)
        torch.save({"model": content["model"], "args": args}, public / "checkpoint.pth")
        hugging_face = str(root / f"hf_{detr}")
        convert_checkpoint.main([str(out / "checkpoint.pth"), hugging_face, "--to", "hf"])
        _keep_only(out, "checkpoint.pth")
    out = root / "own_pretraining"
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, "--max_steps", "1", "--output_dir", str(out)]
    main_pretrain.main(argv)
    _keep_only(out, "checkpoint.pth")
    (root / "body").mkdir()
    body = {name.removeprefix("backbone.0.body."): value for name, value in content["model"].items()
            if name.startswith("backbone.0.body.")}  # fmt: skip
    save_file(
        {"state_dict": {f"module.{name}": value for name, value in body.items()}}, root / "body" / "checkpoint.pth"
    )


def _keep_only(folder: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.name != name:
            path.unlink()


def _images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        load_image(path)
        load_reduced(path, 16)


def _coco(folder: Path) -> None:
    argv = ["--data_path", str(folder), *COMMON, *DETECTOR, "--max_steps", "1", "--output_dir", str(folder / "out")]
    main_finetune.main([*argv, "--max_size", "64", "--scales", "48"])


def _voc(folder: Path) -> None:
    _coco_of_voc = ["--dataset_file", "voc", "--data_path", str(folder), *COMMON, *DETECTOR, "--max_steps", "1"]
    main_finetune.main([*_coco_of_voc, "--output_dir", str(folder / "out"), "--max_size", "64", "--scales", "48"])


def _own_data(folder: Path) -> None:
    """Recognised, read as training does, and looked at."""
    check_data.main([str(folder), "--output_dir", str(folder.parent / "checked"), "--num_workers", "0"])
    args, origin = main_finetune.parse(["--data_path", str(folder), *COMMON, *DETECTOR, "--max_steps", "1",
                                        "--output_dir", str(folder.parent)])  # fmt: skip
    main_finetune.build(args, origin, torch.device("cpu"))


def _list(folder: Path) -> None:
    data = str(folder.parent / "whole" / "data" / "train")
    make_proposals.main([
        "--method", "random", "--data_path", data, "--list", str(folder / "names.txt"), "--max_boxes", "2",
        "--output_dir", str(folder / "out"), "--num_workers", "1",
    ])  # fmt: skip


def _proposals(folder: Path) -> None:
    store = ProposalStore(folder)
    store.check([f"{n}.png" for n in range(4)], "mine")
    store.failed()
    for index in range(len(store)):
        store.boxes(index), store.scores(index), store.path(index)


def _journal(folder: Path) -> None:
    path = folder / "1-of-1.journal"
    list(read_journal(path, PLAN))
    Journal(path, PLAN).close()
    list(read_journal(path, PLAN))


def _specification(folder: Path) -> None:
    make_runs(read_specification(folder / "spec.json"))


def _state(folder: Path) -> None:
    (run, *_) = make_runs(SPECIFICATION)
    is_finished(run, folder)


def _predictions(folder: Path) -> None:
    journal = PredictionJournal(folder, SETTINGS, [1, 2])
    journal.add([ImageRecord("new.png", 60, 40, [])])
    journal.close()
    names = ["0.png", "1.png", "2.png", "new.png"]
    write_results(folder, journal, names, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], {})


def _log(folder: Path) -> None:
    find_evaluation(folder, 3)
    RunLog(folder, step=3, tensorboard=False).write("train", 4, {"loss": 1.0})
    curves(read_log(folder / "log.txt"))


def _resume(folder: Path, script, data: str, flags: list[str]) -> None:
    argv = ["--data_path", data, *COMMON, "--resume", str(folder / "checkpoint.pth"), "--max_steps", "2", *flags]
    args, origin = script.parse([*argv, "--output_dir", str(folder / "out")])
    training, loader, *_ = script.build(args, origin, torch.device("cpu"))
    batches = iter(loader)
    script.engine.train_step(training.method, training, batches, args, torch.device("cpu"))


def _own(folder: Path) -> None:
    _resume(folder, main_finetune, str(folder.parent / "whole" / "data"), ["--eval_every", "0"])


def _own_pretraining(folder: Path) -> None:
    _resume(folder, main_pretrain, str(folder.parent / "whole" / "data" / "train"), [])


def _convert(folder: Path) -> None:
    source = folder / "checkpoint.pth" if (folder / "checkpoint.pth").exists() else folder
    convert_checkpoint.main([str(source), str(folder / "out.pth"), "--to", "detr"])


def _body(folder: Path) -> None:
    weights = str(folder / "checkpoint.pth")
    args, _ = main_pretrain.parse(["--data_path", ".", *PRETRAIN, *DETECTOR, "--backbone_weights", weights])
    main_pretrain.build_detector(args, None)


READERS: dict[str, tuple[Callable[[Path], None], int]] = {
    "images": (_images, 400), "data": (_coco, 260), "voc": (_voc, 240), "list": (_list, 80),
    **dict.fromkeys(OWN_DATA, (_own_data, 240)),
    "proposals": (_proposals, 160), "journal": (_journal, 100), "specification": (_specification, 160),
    "state": (_state, 60), "log": (_log, 100),
    "predictions": (_predictions, 100),
    **{f"own_{detr}": (_own, 90) for detr in DETRS},
    "own_pretraining": (_own_pretraining, 90),
    **{f"public_{detr}": (_convert, 60) for detr in DETRS},
    **{f"hf_{detr}": (_convert, 60) for detr in DETRS},
    "body": (_body, 60),
}  # fmt: skip
"""Kind of input -> its reader, and how many changed inputs it gets."""


def copy_of(whole: Path, kind: str, place: Path) -> Path:
    """A copy of the input ``kind``, which may be changed."""
    shutil.copytree(whole / kind, place / kind)
    return place / kind
