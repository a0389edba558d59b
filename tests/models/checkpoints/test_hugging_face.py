"""Weights between this project and transformers, in both directions and through files, with transformers as oracle."""

import argparse
import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from models import DETECTORS
from models.checkpoints.foreign import read_checkpoint
from models.checkpoints.load import load_origin, num_class_logits
from models.checkpoints.origin import Origin
from models.detr import DETR
from tests.models.detectors import build, randomize, small_args, small_detector, unequal_images
from tests.models.test_hf_oracle import NUM_CLASSES, hf_model
from tools import convert_checkpoint
from util.checkpoint import save_file
from util.errors import CheckpointError, UserError
from util.nested_tensor import NestedTensor
from util.recipes import architecture_names

transformers = pytest.importorskip("transformers", minversion="5.0")
safetensors = pytest.importorskip("safetensors.torch")

TOLERANCE = 1e-4
REFINE = {"with_box_refine": True}
MODELS = {
    "vanilla": ("vanilla", {}),
    "conditional": ("conditional", {}),
    "dab": ("dab", {}),
    "deformable": ("deformable", {}),
    "single-scale": ("deformable", {"num_feature_levels": 1}),
    "refine": ("deformable", REFINE),
    "two-stage": ("deformable", {**REFINE, "two_stage": True}),
}
model_kinds = pytest.mark.parametrize("name", MODELS)


def read(path: Path, **typed: object) -> tuple[DETR, dict, str]:
    """The detector of a checkpoint as main_finetune.py builds it, the content, and the report."""
    content, foreign = read_checkpoint(path, typed)
    args = small_args(**content["args"])
    detector = build(args, num_class_logits(content["model"]))
    report = load_origin(detector, Origin(path, content, resumes=True, foreign=foreign), keep_class_head=True)
    return detector.eval(), content, report.describe(path)


def plain_hf_model(args: argparse.Namespace) -> nn.Module:
    """As transformers makes it, heads shared as it likes; random."""
    model = hf_model(args)
    model = type(model)(model.config)
    randomize(model)
    return model.eval()


@torch.no_grad()
def assert_same(detector: DETR, model: nn.Module) -> None:
    images: NestedTensor = unequal_images((96, 128), (70, 64))
    ours = detector(images)
    theirs = model(pixel_values=images.tensors, pixel_mask=(~images.mask).long())
    # Predictions that are all alike would compare nothing; random queries differ little from each other.
    assert min(theirs.logits.std(), theirs.pred_boxes.std()) > 100 * TOLERANCE
    assert min(theirs.logits.std(1).mean(), theirs.pred_boxes.std(1).mean()) > 10 * TOLERANCE
    torch.testing.assert_close(ours["pred_logits"][-1], theirs.logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours["pred_boxes"][-1], theirs.pred_boxes, atol=TOLERANCE, rtol=0)


THING = [{"label": 0, "id": 7, "name": "thing"}]


def save_own(detector: DETR, args: argparse.Namespace, path: Path, categories: list = THING) -> Path:
    """A checkpoint of this project."""
    architecture = {name: value for name, value in vars(args).items() if name in architecture_names(DETECTORS)}
    save_file(
        {"model": detector.state_dict(), "args": architecture, "stage": "finetune", "categories": categories}, path
    )
    return path


@pytest.mark.parametrize(
    ("name", "arranged"), [*((name, False) for name in MODELS), *((name, True) for name in ("deformable", "refine"))]
)
def test_a_folder_that_transformers_wrote(tmp_path, name, arranged):
    detr, changes = MODELS[name]
    args = small_args(detr, **changes)
    model = hf_model(args) if arranged else plain_hf_model(args)
    model.save_pretrained(tmp_path)
    detector, content, told = read(tmp_path)
    assert {key: content["args"][key] for key in architecture_names(DETECTORS) if key in content["args"]} == {
        key: getattr(args, key) for key in architecture_names(DETECTORS) if key in content["args"]
    }
    assert "left over in the file: nothing" in told
    assert "newly made: nothing" in told
    assert "as in the paper" not in told
    assert [category["name"] for category in content["categories"]] == [f"LABEL_{n}" for n in range(NUM_CLASSES)]
    assert_same(detector, model)


@pytest.mark.parametrize("name", ["refine", "two-stage"])
@pytest.mark.parametrize("kept", [r"(?!model\.decoder\.)", r"model\.decoder\.", r"model\.decoder\.|\w+\.0\."])
def test_heads_that_a_file_names_once(tmp_path, name, kept):
    """Writers of safetensors drop one of two names of the same head; which one differs between them."""
    detr, changes = MODELS[name]
    model = hf_model(small_args(detr, **changes))
    model.save_pretrained(tmp_path)
    heads = {name: value for name, value in model.state_dict().items() if re.match(r"(class|bbox)_embed", name)}
    if name == "refine":
        within = {f"model.decoder.{name}": value for name, value in heads.items() if name.startswith("bbox")}
    else:
        within = {f"model.decoder.{name}": value for name, value in heads.items()}
    once = {n: v for n, v in heads.items() if re.match(kept, n) or f"model.decoder.{n}" not in within}
    once |= {n: v for n, v in within.items() if re.match(kept, n)}
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    others = {n: v for n, v in weights.items() if n not in heads and n not in within}
    safetensors.save_file({n: v.clone() for n, v in {**others, **once}.items()}, tmp_path / "model.safetensors")
    detector, content, told = read(tmp_path)
    assert content["args"]["with_box_refine"] is True
    assert "left over in the file: nothing" in told
    assert_same(detector, model)


@model_kinds
def test_a_folder_for_transformers(tmp_path, name):
    detr, changes = MODELS[name]
    args = small_args(detr, **changes)
    detector = small_detector(detr, **changes)
    categories = [{"label": n, "id": 10 * n, "name": f"thing {n}"} for n in range(5)]
    source = save_own(detector, args, tmp_path / "own.pth", categories)
    convert_checkpoint.main([str(source), str(tmp_path / "hf"), "--to", "hf"])
    model, report = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.id2label[3] == "thing 3"
    assert_same(detector, model.eval())

    again, content, _ = read(tmp_path / "hf")
    own = detector.state_dict()
    assert again.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    assert [category["name"] for category in content["categories"]][: len(categories)] == [
        c["name"] for c in categories
    ]
    transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", backend="pil")


@model_kinds
def test_round_trip_of_their_weights(tmp_path, name):
    detr, changes = MODELS[name]
    model = hf_model(small_args(detr, **changes))
    model.save_pretrained(tmp_path / "theirs")
    convert_checkpoint.main([str(tmp_path / "theirs"), str(tmp_path / "public.pth"), "--to", "detr"])
    convert_checkpoint.main([str(tmp_path / "public.pth"), str(tmp_path / "again"), "--to", "hf"])
    before, after = (read(tmp_path / name)[1]["categories"] for name in ("theirs", "public.pth"))
    assert after == before is not None
    back = type(model).from_pretrained(tmp_path / "again").state_dict()
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(value, back[key]) for key, value in model.state_dict().items())


def test_public_layout_again_gives_the_same_detector(tmp_path):
    args = small_args("deformable", with_box_refine=True)
    detector = small_detector("deformable", with_box_refine=True)
    source = save_own(detector, args, tmp_path / "own.pth", [{"label": 0, "id": 7, "name": "thing"}])
    convert_checkpoint.main([str(source), str(tmp_path / "public.pth"), "--to", "detr"])
    written = torch.load(tmp_path / "public.pth", weights_only=True)["model"]
    own = detector.state_dict()
    assert written.keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in written.items())
    again, content, told = read(tmp_path / "public.pth")
    assert content["args"]["nheads"] == args.nheads
    assert content["args"]["enc_n_points"] == args.enc_n_points
    assert content["categories"] == [{"label": 0, "id": 7, "name": "thing"}]
    assert "as in the paper" not in told
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("detr", ["vanilla", "conditional", "dab"])
def test_dilated_backbone_of_timm_in_both_directions(tmp_path, detr):
    pytest.importorskip("timm")
    args = small_args(detr, backbone="resnet50", dilation=True, enc_layers=1, dec_layers=1)
    model = hf_model(args, timm_backbone=True)
    model.save_pretrained(tmp_path / "theirs")
    detector, content, _ = read(tmp_path / "theirs")
    assert content["args"]["dilation"] is True
    assert content["args"]["backbone"] == "resnet50"
    assert_same(detector, model)
    source = save_own(detector, args, tmp_path / "own.pth")
    convert_checkpoint.main([str(source), str(tmp_path / "ours"), "--to", "hf"])
    assert_same(detector, type(model).from_pretrained(tmp_path / "ours").eval())


def test_configuration_as_the_published_ones_are(tmp_path):
    """transformers 4 writes the backbone of timm by name, and gaps in COCO's ids as N/A."""
    from datasets.coco import COCO_CATEGORIES

    args = small_args("vanilla", enc_layers=1, dec_layers=1)
    model = hf_model(args, timm_backbone=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["backbone_config"]
    config |= {"backbone": "resnet18", "use_timm_backbone": True, "dilation": False}
    config["id2label"] = {str(n): COCO_CATEGORIES.get(n, "N/A") for n in range(91)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    detector, content, _ = read(tmp_path)
    assert_same(detector, model)
    assert content["categories"] == [{"label": n, "id": n, "name": name} for n, name in COCO_CATEGORIES.items()]


@pytest.mark.parametrize("detr", ["vanilla", "conditional"])
def test_learned_positions(tmp_path, detr):
    args = small_args(detr, position_embedding="learned")
    model = hf_model(args)
    model.config.position_embedding_type = "learned"
    model = type(model)(model.config)
    randomize(model)
    model.eval().save_pretrained(tmp_path)
    detector, content, _ = read(tmp_path)
    assert content["args"]["position_embedding"] == "learned"
    assert_same(detector, model)


def test_learned_positions_of_dab_detr_are_refused(tmp_path):
    """transformers has none."""
    changes = {"position_embedding": "learned"}
    source = save_own(small_detector("dab", **changes), small_args("dab", **changes), tmp_path / "own.pth")
    with pytest.raises(UserError, match="--position_embedding learned"):
        convert_checkpoint.main([str(source), str(tmp_path / "hf"), "--to", "hf"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperature_width": 10_000}, "it must have temperature_width 20"),
        ({"activation_function": "relu"}, "it must have activation_function prelu"),
        ({"num_patterns": 3}, "holds transformer.patterns.weight, which this detector does not have"),
        ({"keep_query_pos": True}, "holds transformer.decoder.layers.1.ca_qpos_proj."),
        ({"normalize_before": True}, "holds transformer.encoder.norm."),
    ],
)
def test_other_variants_of_dab_detr_are_refused(tmp_path, changes, told):
    model = hf_model(small_args("dab"))
    for name, value in changes.items():
        setattr(model.config, name, value)
    type(model)(model.config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        read(tmp_path)


@pytest.mark.parametrize("form", ["safetensors", "bin", "in-memory-names", "distributed", "split", "split-bin"])
def test_forms_of_weights(tmp_path, form):
    model = hf_model(small_args("conditional"))
    model.save_pretrained(tmp_path, max_shard_size="300KB" if form == "split" else "1GB")
    path = tmp_path
    if form == "safetensors":
        path = shutil.move(tmp_path / "model.safetensors", tmp_path / "any_name")  # by content, not by ending
    elif form == "split":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    else:
        names = safetensors.load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        if form == "split-bin":
            half = len(names) // 2
            parts = [dict(list(names.items())[:half]), dict(list(names.items())[half:])]
            index = {name: f"part{n}.bin" for n, part in enumerate(parts) for name in part}
            for n, part in enumerate(parts):
                torch.save(part, tmp_path / f"part{n}.bin")
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
        else:
            if form == "distributed":
                names = {f"module.{name}": value for name, value in names.items()}
            torch.save(model.state_dict() if form == "in-memory-names" else names, tmp_path / "pytorch_model.bin")
            path = tmp_path / "pytorch_model.bin" if form in ("bin", "distributed") else tmp_path
    detector, content, _ = read(Path(path))
    assert content["args"]["nheads"] == 4  # of config.json, which lies beside a single file as well
    assert_same(detector, model)


def test_a_single_file_without_a_configuration(tmp_path):
    model = hf_model(small_args("vanilla"))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    path = tmp_path / "model.safetensors"
    _, content, told = read(path)
    assert "the file does not say, so as in the paper: --nheads 8, --dilation False" in told
    assert content["args"]["nheads"] == 8
    assert content["categories"] is None
    detector, _, told = read(path, nheads=4, dilation=False)
    assert "as in the paper" not in told
    assert_same(detector, model)


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


DAMAGES = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "without config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON"),
    "other JSON": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
    "other model": (
        lambda folder: _config(folder, model_type="bert"),
        "type 'bert'; supported are conditional_detr",
    ),
    "other heads": (lambda folder: _config(folder, decoder_attention_heads=2), "--nheads"),
    "other activation": (lambda folder: _config(folder, activation_function="gelu"), "activation_function relu"),
    "other backbone": (lambda folder: _config(folder, backbone_config={"model_type": "swin"}), "--backbone"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights here"),
    "truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:90_000]),
        "model.safetensors: not a safetensors file, or truncated",
    ),
    "half a header": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:99]),
        "model.safetensors: not a safetensors file, or truncated",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    hf_model(small_args("vanilla")).save_pretrained(path)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_told_in_a_line(tmp_path, folder, damage):
    shutil.copytree(folder, tmp_path / "copy")
    change, told = DAMAGES[damage]
    change(tmp_path / "copy")
    with pytest.raises(CheckpointError) as error:
        read(tmp_path / "copy")
    assert told in str(error.value)
    assert str(tmp_path / "copy") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["../outside.bin", "/etc/passwd", 3])
def test_an_index_names_files_of_its_folder_alone(tmp_path, folder, target):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "outside.bin")
    index = {"weight_map": {"x": target}}
    (tmp_path / "copy" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="files of this folder"):
        read(tmp_path / "copy")


def test_missing_part(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "copy")
    weights = safetensors.load_file(tmp_path / "copy" / "model.safetensors")
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "copy" / "part.bin")
    index = {"weight_map": {**dict.fromkeys(weights, "part.bin"), "model.lost": "part.bin"}}
    (tmp_path / "copy" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.lost is in none of its files"):
        read(tmp_path / "copy")
    index["weight_map"]["model.lost"] = "nowhere.bin"
    (tmp_path / "copy" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"nowhere\.bin: no such"):
        read(tmp_path / "copy")


def test_output_that_exists_or_cannot_be_written_for_others(tmp_path):
    source = save_own(small_detector("vanilla"), small_args("vanilla"), tmp_path / "own.pth")
    with pytest.raises(UserError, match="exists already"):
        convert_checkpoint.main([str(source), str(source), "--to", "detr"])
    with pytest.raises(UserError, match="no folder"):
        convert_checkpoint.main([str(source), str(tmp_path / "no" / "where"), "--to", "hf"])
    state = small_detector("vanilla").state_dict()
    body = {name.removeprefix("backbone.0.body."): value for name, value in state.items() if ".body." in name}
    torch.save(body, tmp_path / "body.pth")
    with pytest.raises(CheckpointError, match="nothing to convert"):
        convert_checkpoint.main([str(tmp_path / "body.pth"), str(tmp_path / "out.pth"), "--to", "detr"])


def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(tmp_path):
    source = save_own(small_detector("vanilla"), small_args("vanilla"), tmp_path / "own.pth")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for to in ("hf", "detr"):
            with pytest.raises(UserError, match="cannot be written"):
                convert_checkpoint.main([str(source), str(tmp_path / "out"), "--to", to])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["own.pth"]


@pytest.mark.parametrize(("detr", "stride"), [("vanilla", None), ("conditional", 16), ("deformable", None)])
def test_backbone_of_timm_in_both_directions(tmp_path, detr, stride):
    """Norms with an activation in them, and a map that is not the last."""
    pytest.importorskip("timm")
    args = small_args(
        detr, backbone="timm:tf_efficientnet_lite0", feature_stride=stride, enc_layers=1, dec_layers=2, enc_n_points=4,
        dec_n_points=4,
    )  # fmt: skip
    detector = small_detector(detr, **{name: value for name, value in vars(args).items() if name != "detr"})
    source = save_own(detector, args, tmp_path / "own.pth")
    convert_checkpoint.main([str(source), str(tmp_path / "hf"), "--to", "hf"])
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "hf").eval()
    assert_same(detector, model)
    prepared = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert prepared["image_mean"] == [0.5, 0.5, 0.5]
    again, content, _ = read(tmp_path / "hf")
    assert content["args"]["backbone"] == args.backbone
    assert content["args"]["feature_stride"] == {"vanilla": 32, "conditional": 16, "deformable": None}[detr]
    assert all(torch.equal(value, detector.state_dict()[name]) for name, value in again.state_dict().items())


def test_public_file_of_a_timm_detector(tmp_path):
    pytest.importorskip("timm")
    changes = {"backbone": "timm:tf_efficientnet_lite0"}
    source = save_own(small_detector("vanilla", **changes), small_args("vanilla", **changes), tmp_path / "own.pth")
    convert_checkpoint.main([str(source), str(tmp_path / "out.pth"), "--to", "detr"])
    again, content, _ = read(tmp_path / "out.pth")
    assert content["args"]["backbone"] == changes["backbone"]
    assert len(again.state_dict()) == len(content["model"])
    names_it_otherwise = argparse.Namespace(nheads=4, backbone="tf_efficientnet_lite0")
    torch.save({"model": again.state_dict(), "args": names_it_otherwise}, tmp_path / "public.pth")
    assert read(tmp_path / "public.pth", backbone=changes["backbone"])[1]["args"]["backbone"] == changes["backbone"]
