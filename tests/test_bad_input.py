"""Errors that a user can make: one line on stderr, exit status 1, before any training starts."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

import main_finetune
import main_pretrain
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from util.checkpoint import load_file
from util.script import run_script


@pytest.fixture(scope="module")
def checkpoints(data, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each stage."""
    folder = tmp_path_factory.mktemp("checkpoints")
    main_pretrain.main([
        "--data_path", f"{data}/train", "--output_dir", f"{folder}/pre", *PRETRAIN, *DETECTOR, "--max_steps", "1",
    ])  # fmt: skip
    main_finetune.main([
        "--data_path", str(data), "--output_dir", f"{folder}/fine", *COMMON, *DETECTOR, "--max_steps", "1",
    ])  # fmt: skip
    return {stage: folder / stage / "checkpoint.pth" for stage in ("pre", "fine")}


@pytest.fixture
def fails(capsys, tmp_path):
    """Run a script that must fail; return its line on stderr."""

    def run(script, *argv):
        with pytest.raises(SystemExit) as stop:
            run_script(lambda: script.main([*map(str, argv), "--output_dir", str(tmp_path / "out")]))
        assert stop.value.code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error")]
        assert len(errors) == 1, lines
        assert "Traceback" not in "".join(lines)
        assert not (tmp_path / "out" / "checkpoint.pth").exists()
        return errors[0]

    return run


def pretrain_on(folder, *argv):
    return main_pretrain, "--data_path", folder, *PRETRAIN, *DETECTOR, "--max_steps", "1", *argv


def finetune_on(folder, *argv):
    return main_finetune, "--data_path", folder, *COMMON, *DETECTOR, "--max_steps", "1", *argv


def test_no_such_path(fails, tmp_path):
    assert "nowhere" in fails(*pretrain_on(tmp_path / "nowhere"))
    assert "nowhere" in fails(*finetune_on(tmp_path / "nowhere"))
    assert "nowhere" in fails(*finetune_on(tmp_path / "nowhere", "--dataset_file", "voc"))


def test_empty_folder(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(*pretrain_on(tmp_path / "empty"))
    assert "empty" in fails(*finetune_on(tmp_path / "empty"))
    assert "empty" in fails(*finetune_on(tmp_path / "empty", "--dataset_file", "voc"))


@pytest.mark.parametrize("num_workers", ["0", "1"])
@pytest.mark.parametrize("damage", ["truncated", "zero bytes", "not an image"])
def test_damaged_image(fails, data, tmp_path, damage, num_workers):
    folder = tmp_path / "images"
    shutil.copytree(data / "train", folder)
    for path in folder.iterdir():
        whole = path.read_bytes()
        path.write_bytes(
            {"truncated": whole[: len(whole) // 2], "zero bytes": b"", "not an image": b"text" * 99}[damage]
        )
    line = fails(*pretrain_on(folder, "--num_workers", num_workers))
    assert ".png" in line
    assert str(folder) in line


def test_unusual_images_work(data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    picture = Image.open(data / "train" / "0.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("L").save(folder / "grey.jpg")
    Image.new("I;16", picture.size, 30000).save(folder / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "rotated.jpg", exif=exif)
    picture.convert("RGBA").save(folder / "transparent.png")
    main_pretrain.main(
        ["--data_path", str(folder), *PRETRAIN, *DETECTOR, "--max_steps", "3", "--output_dir", str(tmp_path / "out")]
    )
    assert load_file(tmp_path / "out" / "checkpoint.pth")["step"] == 3


def _with_annotations(data, tmp_path, change) -> Path:
    root = tmp_path / "changed"
    shutil.copytree(data, root)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    text = change(content)
    path.write_text(text if isinstance(text, str) else json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda content: "{ not json", "instances_train.json"),
        (lambda content: content.pop("categories") and None, "categories"),
        (lambda content: content.pop("images") and None, "images"),
        (lambda content: content["annotations"][0].pop("bbox") and None, "bbox"),
        (lambda content: content["images"][0].update(file_name="gone.png"), "gone.png"),
        (lambda content: content["annotations"][0].update(image_id=999), "999"),
        (lambda content: content["annotations"][0].update(category_id=77), "77"),
        (lambda content: content["annotations"][0].update(bbox=[0, 0, "wide", 3]), "bbox"),
    ],
)
def test_broken_annotations(fails, data, tmp_path, change, word):
    line = fails(*finetune_on(_with_annotations(data, tmp_path, change)))
    assert word in line
    assert "instances_train.json" in line


def test_boxes_that_cannot_be_used_are_dropped_and_told(data, tmp_path, capsys):
    def change(content):
        for annotation, box in zip(content["annotations"], ([5, 5, 0, 9], [5, 5, -3, 9], [500, 5, 9, 9]), strict=False):
            annotation["bbox"] = box

    root = _with_annotations(data, tmp_path, change)
    main_finetune.main([*map(str, finetune_on(root)[1:]), "--output_dir", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "3 of 20" in told
    assert "annotation 1 of 0.png" in told


def test_queries_not_divisible_by_regions(fails, data):
    line = fails(*pretrain_on(f"{data}/train", "--num_regions", "3"))
    assert "--num_queries 10 is not divisible by --num_regions 3" in line


def test_deformable_flags_where_they_do_not_belong(fails, data):
    line = fails(*pretrain_on(f"{data}/train", "--num_feature_levels", "4"))
    assert "--num_feature_levels goes with --detr deformable" in line
    flags = ["--detr", "deformable", "--with_box_refine", "--two_stage"]
    assert "--two_stage cannot be pretrained" in fails(*pretrain_on(f"{data}/train", *flags))
    assert "--with_box_refine goes with --detr deformable" in fails(*finetune_on(data, "--with_box_refine"))


def test_checkpoint_of_another_architecture(fails, data, checkpoints):
    line = fails(main_finetune, "--data_path", data, *COMMON, "--pretrain", checkpoints["pre"], "--hidden_dim", "64")
    assert "--hidden_dim 64 does not fit" in line
    assert "--hidden_dim 32" in line
    line = fails(main_finetune, "--data_path", data, *COMMON, "--resume", checkpoints["fine"], "--detr", "vanilla")
    assert "--detr" in line


def test_resume_in_the_wrong_script(fails, data, checkpoints):
    assert "a finetune checkpoint" in fails(*pretrain_on(f"{data}/train", "--resume", checkpoints["fine"]))
    line = fails(main_finetune, "--data_path", data, *COMMON, "--resume", checkpoints["pre"])
    assert "a pretrain checkpoint" in line
    assert "--pretrain" in line


@pytest.mark.parametrize("flag", ["--pretrain", "--resume", "--backbone_weights"])
def test_checkpoint_that_cannot_be_read(fails, data, checkpoints, tmp_path, flag):
    proof = tmp_path / "proof"

    class Evil:
        def __reduce__(self):
            return (open, (str(proof), "w"))

    whole = checkpoints["fine"].read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"model": Evil(), "args": {}, "stage": "finetune"}, tmp_path / "evil.pth")
    (tmp_path / "evil_pickle.pth").write_bytes(pickle.dumps(Evil()))
    architecture = DETECTOR if flag == "--backbone_weights" else []
    for name in ("truncated.pth", "text.pth", "evil.pth", "evil_pickle.pth", "missing.pth"):
        line = fails(main_finetune, "--data_path", data, *COMMON, *architecture, flag, tmp_path / name)
        assert name in line
    assert not proof.exists()


def test_checkpoints_of_others_that_will_not_do(fails, data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    torch.save({}, tmp_path / "bert" / "pytorch_model.bin")
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "unknown.pth")
    (tmp_path / "half.safetensors").write_bytes((99).to_bytes(8, "little") + b'{"x": ')
    told = {
        "empty": "without config.json",
        "bert": "of type 'bert'",
        "unknown.pth": "not recognised",
        "half.safetensors": "truncated",
    }
    for name, word in told.items():
        for flags in (["--pretrain"], ["--eval", "--resume"]):
            line = fails(main_finetune, "--data_path", data, *COMMON, *flags, tmp_path / name)
            assert name in line
            assert word in line


def test_two_backbones(fails, data, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    flags = ["--pretrain", tmp_path / "resnet.pth", "--backbone_weights", tmp_path / "resnet.pth"]
    assert "choose one" in fails(*finetune_on(data, *flags))


def test_eval_without_a_checkpoint(fails, data):
    assert "--resume" in fails(main_finetune, "--data_path", data, *COMMON, "--eval")
    assert "--resume" in fails(main_finetune, "--data_path", data, *COMMON, "--eval", "--resume", "auto")


def test_output_folder_that_cannot_be_written(capsys, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run_script(
            lambda: main_pretrain.main(
                [*map(str, pretrain_on(f"{data}/train")[1:]), "--output_dir", str(tmp_path / "file")]
            )
        )
    assert "--output_dir" in capsys.readouterr().err


def test_a_run_is_not_overwritten(capsys, data, checkpoints):
    with pytest.raises(SystemExit):
        run_script(
            lambda: main_pretrain.main(
                [*map(str, pretrain_on(f"{data}/train")[1:]), "--output_dir", str(checkpoints["pre"].parent)]
            )
        )
    assert "--resume auto" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--crop_size", "100000000"],
        ["--max_size", "50000"],
        ["--scales", "64", "50000"],
        ["--enc_layers", "100000000"],
        ["--num_queries", "1000000000"],
        ["--max_image_pixels", "0"],
    ],
)
def test_a_typing_error_does_not_take_all_memory(fails, data, flags):
    line = fails(*pretrain_on(f"{data}/train", *flags))
    assert flags[0] in line
    assert "must be at" in line


def test_fewer_images_than_a_batch(fails, data):
    assert "--batch_size" in fails(*pretrain_on(f"{data}/train", "--batch_size", "64"))


def test_a_backbone_that_does_not_exist(fails, data):
    assert "--backbone" in fails(main_finetune, "--data_path", data, *COMMON, "--backbone", "resnet51")
    assert "--backbone" in fails(main_finetune, "--data_path", data, *COMMON, "--backbone", "timm:no_such_model")
