"""Training works: runs of minutes, on real photographs with a pretrained backbone."""

import shutil

import pytest

import main_finetune
import main_pretrain
from tests.runs import read_log
from util.plot_utils import plot_curves

pytestmark = pytest.mark.slow

SMALL = (
    "--backbone timm:tf_efficientnet_lite0 --enc_layers 2 --dec_layers 2 "
    "--dim_feedforward 512 --dropout 0 --device cpu --num_workers 2 --seed 1"
).split()
CONDITIONAL = "--detr conditional --feature_stride 16".split()
DEFORMABLE = "--detr deformable --num_feature_levels 4".split()
FEW_QUERIES = "--num_queries 50".split()


@pytest.mark.parametrize(
    ("detector", "schedule"),
    [(CONDITIONAL, "--max_steps 2000 --lr_drop_step 1600"), (DEFORMABLE, "--max_steps 1000 --lr_drop_step 800")],
    ids=["conditional", "deformable"],
)
def test_eight_images_are_overfitted_from_scratch(real_data, tmp_path, detector, schedule):
    """Cells of three classes, a dozen per image: AP50 of at least 0.90 on the training images."""
    root = tmp_path / "cells"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    names = (real_data / "bccd" / "ImageSets" / "Main" / "train.txt").read_text().split()[:8]
    for image_set in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(names))
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (root / folder).mkdir()
        for name in names:
            shutil.copy(real_data / "bccd" / folder / f"{name}{suffix}", root / folder)
    weights = real_data / "backbones" / "tf_efficientnet_lite0.pth"
    main_finetune.main([
        "--recipe", "paper", "--dataset_file", "voc", "--data_path", str(root), *detector, *SMALL, *FEW_QUERIES,
        "--backbone_weights", str(weights),
        *"--scales 240 --max_size 320 --batch_size 4 --lr 4e-4 --lr_backbone 1e-4".split(),
        *schedule.split(), *"--eval_every 0 --save_every_epochs 0".split(),
        "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    assert read_log(tmp_path / "out", "eval")[-1]["AP50"] >= 0.90


def test_pretraining_losses_fall(real_data, tmp_path):
    """On 200 photographs every term of the pretext tasks falls by at least a fifth.

    With the paper's ten queries per region: the classification loss starts at 0.69, where it only knows how many
    queries match, and can fall by a fifth. With five queries per region it would start at 0.60.
    """
    photos = sorted((real_data / "photos" / "train").glob("*/*"))[::5]
    (tmp_path / "photos").mkdir()
    for photo in photos:
        shutil.copy(photo, tmp_path / "photos" / f"{photo.parent.name}_{photo.name}")
    assert len(photos) == 200
    main_pretrain.main([
        "--data_path", str(tmp_path / "photos"), *CONDITIONAL, *SMALL,
        "--backbone_weights", str(real_data / "backbones" / "tf_efficientnet_lite0.pth"),
        *"--scales 112 128 144 --max_size 224 --crop_size 48 --batch_size 8 --lr 4e-4 --global_loss_coef 1".split(),
        *"--max_steps 500 --log_every 20 --save_every_epochs 0 --output_dir".split(), str(tmp_path / "out"),
    ])  # fmt: skip
    plot_curves({"pretraining": tmp_path / "out" / "log.txt"}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    log = read_log(tmp_path / "out", "train")
    for name in ("loss_ce", "loss_bbox", "loss_giou", "loss_feature"):
        first, last = log[0][name], sum(line[name] for line in log[-3:]) / 3
        assert last <= 0.8 * first, f"{name}: {first:.3f} -> {last:.3f}"
