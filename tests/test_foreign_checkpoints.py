"""Both scripts start from checkpoints of other projects, and evaluate them."""

import argparse
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
from datasets.coco import COCO_CATEGORIES
from models.transformer import VANILLA
from tests.models.public_layouts import PRE_NORM_PRETRAINING_LAYOUTS
from tests.tiny import COMMON, DETECTOR, PRETRAIN
from tools import convert_checkpoint
from util import recipes
from util.checkpoint import load_file, save_file
from util.errors import CheckpointError, DataError, UserError

pytest.importorskip("safetensors")

DETECTORS = ["vanilla", "conditional", "deformable", "dab"]


@pytest.fixture(scope="module")
def coco(data, tmp_path_factory) -> Path:
    """The same with COCO's 80 categories, which also have the ids 10 and 20."""
    root = tmp_path_factory.mktemp("coco") / "data"
    shutil.copytree(data, root)
    categories = [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    for path in (root / "annotations").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "categories": categories}))
    return root


def finetune(root: Path, out: Path, *argv: object) -> dict:
    """Run main_finetune.py; returns the last checkpoint."""
    main_finetune.main(["--data_path", str(root), "--output_dir", str(out), *COMMON, *map(str, argv)])
    return load_file(out / "checkpoint.pth")


def evaluate(root: Path, out: Path, checkpoint: Path, *argv: str) -> dict:
    """Run main_finetune.py --eval; returns the scores."""
    argv = ("--resume", str(checkpoint), "--eval", "--data_path", str(root), "--output_dir", str(out), *COMMON, *argv)
    main_finetune.main(list(argv))
    return json.loads((out / "eval.json").read_text())


def find_something(checkpoint: Path, labels: list[int]) -> Path:
    """Change a new checkpoint so that it detects something: these labels, boxes of the usual size and place."""
    content = load_file(checkpoint)
    for name, value in content["model"].items():
        if re.fullmatch(r"bbox_embed\.(\d+\.)?layers\.2\.bias", name):
            value.copy_(torch.tensor([-0.5, -0.5, -1.0, -1.0]))
        elif re.fullmatch(r"class_embed\.(\d+\.)?bias", name):
            value[labels] += 5
    save_file(content, checkpoint)
    return checkpoint


@pytest.fixture(scope="module", params=DETECTORS)
def trained(request, coco, tmp_path_factory) -> Path:
    """A checkpoint of this project that finds something on COCO's categories."""
    out = tmp_path_factory.mktemp(request.param)
    finetune(coco, out, *DETECTOR, "--detr", request.param, "--max_steps", "1", "--eval_every", "0")
    return find_something(out / "checkpoint.pth", [10, 20])


def public_file(checkpoint: Path, path: Path, **changes: object) -> Path:
    """The detector of a checkpoint as public files hold one: named weights beside a pickled Namespace."""
    own = load_file(checkpoint)
    args = argparse.Namespace(nheads=own["args"]["nheads"], dilation=False, dataset_file="coco", **changes)
    torch.save({"model": own["model"], "args": args, "epoch": np.int64(3), "lr": np.float64(1e-4)}, path)
    return path


def test_evaluation_of_others_prints_what_the_own_checkpoint_does(trained, coco, tmp_path, capsys):
    own = evaluate(coco, tmp_path / "own", trained)
    assert own["AR100"] > 0, "a detector that finds nothing proves nothing"
    table = capsys.readouterr().out.partition("AP ")[2]
    public = public_file(trained, tmp_path / "public.pth")
    convert_checkpoint.main([str(trained), str(tmp_path / "hf"), "--to", "hf"])
    convert_checkpoint.main([str(trained), str(tmp_path / "converted.pth"), "--to", "detr"])
    capsys.readouterr()
    prepared = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    saved = load_file(trained)["args"]
    assert prepared["size"] == {"shortest_edge": saved["eval_size"], "longest_edge": saved["eval_max_size"]}
    for path in (tmp_path / "hf", tmp_path / "hf" / "model.safetensors", tmp_path / "converted.pth"):
        args, _ = main_finetune.parse(["--resume", str(path), "--eval", "--data_path", str(coco)])
        assert [args.eval_size, args.eval_max_size] == [saved["eval_size"], saved["eval_max_size"]]
    with pytest.raises(CheckpointError, match="--num_queries 3 does not fit"):
        convert_checkpoint.main([str(trained), str(tmp_path / "other"), "--to", "hf", "--num_queries", "3"])
    for path in (public, tmp_path / "hf", tmp_path / "hf" / "model.safetensors", tmp_path / "converted.pth"):
        assert evaluate(coco, tmp_path / "eval", path) == own
        told = capsys.readouterr().out
        assert told.partition("AP ")[2] == table
        assert "newly made: nothing" in told


def test_finetuning_on_the_same_categories_keeps_the_class_head(trained, coco, tmp_path, capsys):
    public = public_file(trained, tmp_path / "public.pth")
    rates = ["--lr", "0", "--lr_backbone", "0", "--max_steps", "1"]
    finetuned = finetune(coco, tmp_path / "out", "--pretrain", public, *rates)
    for name, value in load_file(trained)["model"].items():
        assert torch.equal(finetuned["model"][name], value), name
    assert "recognised as public DETR family" in capsys.readouterr().out


@pytest.mark.parametrize(("num_queries", "told"), [(6, "the others are dropped"), (13, "3 are new")])
def test_finetuning_with_other_categories_and_queries(trained, data, tmp_path, capsys, num_queries, told):
    public = public_file(trained, tmp_path / "public.pth")
    argv = ["--pretrain", public, "--num_queries", num_queries, "--lr", "0", "--lr_backbone", "0", "--max_steps", "1"]
    finetuned = finetune(data, tmp_path / "out", *argv)
    before = load_file(trained)["model"]
    kept = min(num_queries, 10)
    for name, value in finetuned["model"].items():
        if name == "query_embed.weight":
            assert len(value) == num_queries
            assert torch.equal(value[:kept], before[name][:kept])
        elif not name.startswith("class_embed"):
            assert torch.equal(value, before[name]), name
    lines = capsys.readouterr().out
    assert f"queries: the first {kept} of the file's 10 are kept, {told}" in lines
    assert "newly made: class_embed" in lines
    assert "left over in the file: class_embed" in lines
    assert finetuned["args"]["num_queries"] == num_queries


def test_flags_that_contradict_the_weights(trained, coco, tmp_path):
    public = public_file(trained, tmp_path / "public.pth")
    for flag, value in (("--hidden_dim", "64"), ("--enc_layers", "3"), ("--backbone", "resnet50"), ("--nheads", "8")):
        with pytest.raises(CheckpointError, match=f"{flag} {value} does not fit .*public.pth"):
            finetune(coco, tmp_path / "out", "--pretrain", public, flag, value)
    with pytest.raises(CheckpointError, match="--num_queries 5 does not fit"):
        evaluate(coco, tmp_path / "out", public, "--num_queries", "5")


@pytest.fixture(scope="module")
def conditional(coco, tmp_path_factory) -> Path:
    """An untrained checkpoint of this project for COCO's categories."""
    out = tmp_path_factory.mktemp("conditional")
    finetune(coco, out, *DETECTOR, "--max_steps", "1", "--eval_every", "0")
    return out / "checkpoint.pth"


def test_evaluation_on_other_categories_is_refused(conditional, data, tmp_path):
    with pytest.raises(DataError, match='category 10 is "square" here and "traffic light" in the training data'):
        evaluate(data, tmp_path / "out", public_file(conditional, tmp_path / "public.pth"))


def test_labels_of_hugging_face_are_matched_by_name(data, tmp_path):
    out = tmp_path / "own"
    finetune(data, out, *DETECTOR, "--max_steps", "1")
    find_something(out / "checkpoint.pth", [0, 1])
    own = evaluate(data, tmp_path / "eval", out / "checkpoint.pth")
    assert own["AR100"] > 0
    folder = tmp_path / "hf"
    convert_checkpoint.main([str(out / "checkpoint.pth"), str(folder), "--to", "hf"])
    assert evaluate(data, tmp_path / "eval", folder) == own

    # The same detector with its two labels exchanged, in weights and names.
    import safetensors.torch

    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for name in ("class_labels_classifier.weight", "class_labels_classifier.bias"):
        weights[name] = weights[name].flip(0)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "square", "1": "brick"}
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "brick", "1": "square"}}))
    exchanged = evaluate(data, tmp_path / "eval", folder)
    assert exchanged["per_class"] == own["per_class"]
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "brick", "1": "zebra"}}))
    with pytest.raises(CheckpointError, match=r'does not know the category "square".*brick.*zebra'):
        evaluate(data, tmp_path / "eval", folder)


def test_what_cannot_be_resumed_or_evaluated(conditional, coco, data, tmp_path):
    public = public_file(conditional, tmp_path / "public.pth")
    with pytest.raises(CheckpointError, match=r"another project.*cannot be resumed.*--pretrain"):
        finetune(coco, tmp_path / "out", "--resume", public)
    with pytest.raises(CheckpointError, match="another project"):
        main_pretrain.main(
            ["--data_path", f"{coco}/train", *PRETRAIN, "--resume", str(public), "--output_dir", str(tmp_path / "out")]
        )
    weights = load_file(conditional)["model"]
    torch.save({"model": {**weights, "patch2query.bias": torch.zeros(32)}}, tmp_path / "pretraining.pth")
    with pytest.raises(CheckpointError, match=r"a pretrain checkpoint.*--pretrain"):
        evaluate(coco, tmp_path / "out", tmp_path / "pretraining.pth")
    heads = {name: value[:7] for name, value in weights.items() if name.startswith("class_embed")}
    torch.save({"model": {**weights, **heads}}, tmp_path / "seven.pth")
    with pytest.raises(CheckpointError, match="its categories are unknown"):
        evaluate(coco, tmp_path / "out", tmp_path / "seven.pth")
    elsewhere = public_file(conditional, tmp_path / "voc.pth")
    torch.save({"model": weights, "args": argparse.Namespace(dataset_file="voc")}, elsewhere)
    with pytest.raises(CheckpointError, match="its categories are unknown"):
        evaluate(coco, tmp_path / "out", elsewhere)


TINY = {"backbone": "resnet18", "enc_layers": 1, "dec_layers": 2, "hidden_dim": 32, "dim_feedforward": 64}


@pytest.fixture(scope="module", params=["tiny", pytest.param("published", marks=pytest.mark.slow)])
def up_detr_file(request, tmp_path_factory) -> Path:
    """A file like those of UP-DETR's published command, with random weights: pre-norm DETR, full-sized or tiny."""
    changes = {"pre_norm": True, "dropout": 0.0} | (TINY if request.param == "tiny" else {})
    args = argparse.Namespace(**recipes.architecture_defaults(VANILLA) | changes)
    torch.manual_seed(0)
    detector = VANILLA.build(args, 3, classification="softmax", train_backbone=False)
    patches = torch.nn.Linear(detector.backbone[0].num_channels[-1], args.hidden_dim).state_dict()
    weights = detector.state_dict() | {f"patch2query.{name}": value for name, value in patches.items()}
    path = tmp_path_factory.mktemp("up_detr") / "up-detr-pre-training-60ep.pth"
    torch.save({"model": weights, "args": argparse.Namespace(nheads=8, dilation=False, pre_norm=True)}, path)
    layout = PRE_NORM_PRETRAINING_LAYOUTS["up-detr-r50-pre-norm-pretrain"]
    assert request.param == "tiny" or {name: tuple(value.shape) for name, value in weights.items()} == layout
    return path


def test_pre_norm_of_up_detr_is_kept_on_all_ways(up_detr_file, data, tmp_path, capsys):
    """Pretrained elsewhere -> finetuned -> evaluated -> converted -> finetuned again, with rates of 0."""
    still = ["--lr", "0", "--lr_backbone", "0", "--max_steps", "1"]
    weights = {n: v for n, v in load_file(up_detr_file)["model"].items() if not n.startswith(("class_", "patch2query"))}
    finetuned = finetune(data, tmp_path / "own", "--pretrain", up_detr_file, *still)
    told = capsys.readouterr().out
    assert "recognised as UP-DETR's pretraining" in told
    assert "newly made: class_embed" in told
    assert finetuned["args"]["pre_norm"]
    assert all(torch.equal(finetuned["model"][name], value) for name, value in weights.items())

    own = tmp_path / "own" / "checkpoint.pth"
    scores = json.loads((tmp_path / "own" / "eval.json").read_text())
    assert evaluate(data, tmp_path / "eval", own) == scores
    convert_checkpoint.main([str(own), str(tmp_path / "public.pth"), "--to", "detr"])
    public = load_file(tmp_path / "public.pth")
    assert evaluate(data, tmp_path / "eval", tmp_path / "public.pth") == scores
    again = finetune(data, tmp_path / "again", "--pretrain", tmp_path / "public.pth", *still)
    for content in (public, again):
        assert content["model"].keys() == finetuned["model"].keys()
        assert all(torch.equal(value, finetuned["model"][name]) for name, value in content["model"].items())
    assert again["args"]["pre_norm"]
    with pytest.raises(UserError, match="transformers has no --pre_norm for --detr vanilla; use --to detr") as error:
        convert_checkpoint.main([str(own), str(tmp_path / "hf"), "--to", "hf"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hf").exists()
    with pytest.raises(CheckpointError, match="--detr conditional does not fit"):
        finetune(data, tmp_path / "other", "--pretrain", up_detr_file, "--detr", "conditional")


def test_pre_norm_has_to_be_in_the_weights(conditional, data, tmp_path):
    public = public_file(conditional, tmp_path / "public.pth")
    with pytest.raises(CheckpointError, match=r"--pre_norm True does not fit .*public\.pth"):
        finetune(data, tmp_path / "out", "--pretrain", public, "--pre_norm")


def body_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    beginning = "backbone.0.body."
    model = load_file(checkpoint)["model"]
    return {name.removeprefix(beginning): value for name, value in model.items() if name.startswith(beginning)}


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_pretrain_takes_a_backbone_alone(conditional, data, tmp_path, capsys, prefix):
    body = body_of(conditional)
    torch.save({"state_dict": {f"{prefix}{name}": value for name, value in body.items()}}, tmp_path / "body.pth")
    flags = [flag for flag in DETECTOR if flag not in ("--backbone", "resnet18")]
    rates = ["--lr", "0", "--lr_backbone", "0", "--max_steps", "1"]
    finetuned = finetune(data, tmp_path / "out", "--pretrain", tmp_path / "body.pth", *flags, *rates)
    assert finetuned["args"]["backbone"] == "resnet18"
    assert all(torch.equal(finetuned["model"][f"backbone.0.body.{name}"], value) for name, value in body.items())
    assert "the Transformer starts from scratch" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="--backbone resnet50 does not fit"):
        finetune(data, tmp_path / "other", "--pretrain", tmp_path / "body.pth", "--backbone", "resnet50")
    with pytest.raises(CheckpointError, match="only a backbone"):
        evaluate(data, tmp_path / "other", tmp_path / "body.pth")


@pytest.mark.parametrize("form", ["own", "authors", "hf", "moco"])
def test_backbone_weights_takes_the_backbone_of_anything(conditional, data, tmp_path, form, capsys):
    body = body_of(conditional)
    path = tmp_path / "file.pth"
    if form == "own":
        path = conditional
    elif form == "hf":
        path = tmp_path / "hf"
        convert_checkpoint.main([str(conditional), str(path), "--to", "hf"])
    else:
        prefix = {"authors": "module.backbone.", "moco": "module.encoder_q."}[form]
        others = {"module.encoder_k.conv1.weight": torch.zeros(64, 3, 7, 7), "module.queue": torch.zeros(128, 8)}
        torch.save({"state_dict": {f"{prefix}{name}": value for name, value in body.items()} | others}, path)
    argv = ["--data_path", f"{data}/train", *PRETRAIN, *DETECTOR, "--max_steps", "1", "--backbone_weights", str(path)]
    main_pretrain.main([*argv, "--output_dir", str(tmp_path / "out")])
    model = load_file(tmp_path / "out" / "checkpoint.pth")["model"]
    assert all(torch.equal(model[f"backbone.0.body.{name}"], value) for name, value in body.items())
    if form == "moco":
        assert "module.encoder_k.conv1.weight, module.queue" in capsys.readouterr().out.replace("module.*", "module.")


class Evil:
    """Would write a file when unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple:
        return open, (self.proof, "w")


class Arguments(argparse.Namespace):
    """Not the class that public files pickle."""


@pytest.mark.parametrize("place", [".pth", ".bin", ".safetensors", "folder", "split folder", "namespace", "raw"])
@pytest.mark.parametrize("flag", ["--pretrain", "--resume", "--backbone_weights"])
def test_code_is_refused_on_every_path(conditional, data, tmp_path, place, flag):
    proof = tmp_path / "proof"
    weights = load_file(conditional)["model"]
    content = {"model": weights, "args": Arguments(x=1) if place == "namespace" else Evil(proof)}
    path = tmp_path / ("file" + (place if place.startswith(".") else ".pth"))
    if "folder" in place:
        path = tmp_path / "hf"
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "conditional_detr"}')
        torch.save({**weights, "x": Evil(proof)}, path / ("pytorch_model.bin" if place == "folder" else "part.bin"))
        if place != "folder":
            (path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "part.bin"}}')
    elif place == "raw":
        path.write_bytes(pickle.dumps(content["args"]))
    else:
        torch.save(content, path)
    argv = [*COMMON, *(DETECTOR if flag == "--backbone_weights" else []), "--data_path", str(data), flag, str(path)]
    with pytest.raises(CheckpointError, match="refused"):
        main_finetune.main([*argv, *(["--eval"] if flag == "--resume" else []), "--output_dir", str(tmp_path / "out")])
    assert not proof.exists()
    if flag == "--pretrain":
        with pytest.raises(CheckpointError, match="refused"):
            convert_checkpoint.main([str(path), str(tmp_path / "converted"), "--to", "detr"])
    assert not proof.exists()


def test_own_checkpoints_that_somebody_changed(conditional, coco, tmp_path):
    content = load_file(conditional)
    argv = [*COMMON, "--data_path", str(coco), "--output_dir", str(tmp_path / "out"), "--resume", str(tmp_path / "x")]
    without = {name: value for name, value in content.items() if name != "categories"}
    for changed in (without, {**content, "args": None}, {**content, "stage": "other"}):
        torch.save(changed, tmp_path / "x")
        with pytest.raises(CheckpointError, match="x: damaged"):
            main_finetune.main([*argv, "--eval"])
    torch.save({name: value for name, value in content.items() if name != "step"}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="does not fit this run"):
        main_finetune.main(argv)
