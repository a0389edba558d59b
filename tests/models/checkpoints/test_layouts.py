"""State dicts in the layout of each public checkpoint: recognised, loaded whole, and refused if one shape is wrong."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.coco import COCO_CATEGORIES
from models.checkpoints import foreign
from models.checkpoints.foreign import read_checkpoint
from models.checkpoints.load import check_weights, load_origin, num_class_logits
from models.checkpoints.origin import Origin
from models.detr import DETR
from tests.models.detectors import build, small_args
from tests.models.public_layouts import (
    DEFORMABLE,
    PRE_NORM_PRETRAINING_LAYOUTS,
    PRETRAINING_LAYOUTS,
    PUBLIC_LAYOUTS,
    SWAV_LAYOUT,
    UP_DETR_TRAINING_LAYOUTS,
    Layout,
    detr_layout,
)
from util.errors import CheckpointError

UNFINISHED = PRETRAINING_LAYOUTS | PRE_NORM_PRETRAINING_LAYOUTS | UP_DETR_TRAINING_LAYOUTS
LAYOUTS = PUBLIC_LAYOUTS | UNFINISHED
layouts = pytest.mark.parametrize("name", LAYOUTS)
# vanilla DETR has 100 queries and layers of width 2048, all others here are said to differ from that
DIFFERENCES = {
    "detr-r50-dc5": {"dilation": True},
    "detr-r101": {"backbone": "resnet101"},
    "conditional-detr-r50": {"num_queries": 300},
    "conditional-detr-r50-pre-norm": {"num_queries": 300},
    "dab-detr-r50": {"num_queries": 300},
    "deformable-detr-r50-single-scale": {"num_feature_levels": 1},
    "deformable-detr-r50-refine": {"with_box_refine": True},
    "deformable-detr-r50-refine-two-stage": {"with_box_refine": True, "two_stage": True},
    "siamese-detr-deformable-single-scale-r50-training": {"num_feature_levels": 1},
}


def architecture(name: str) -> dict:
    """What the name of a layout says."""
    detr = next((detr for detr in ("deformable", "conditional", "dab") if detr in name), "vanilla")
    expected = {
        "detr": detr,
        "backbone": "resnet50",
        "dilation": False,
        "position_embedding": "sine",
        "enc_layers": 6,
        "dec_layers": 6,
        "hidden_dim": 256,
        "nheads": 8,
        "dim_feedforward": 2048,
        "num_queries": 100,
        "feature_stride": None,
    }
    if detr == "deformable":
        expected |= {"dim_feedforward": 1024, "num_queries": 300, "num_feature_levels": 4}
        expected |= {"enc_n_points": 4, "dec_n_points": 4, "with_box_refine": False, "two_stage": False}
    elif detr != "dab":
        expected["pre_norm"] = "pre-norm" in name
    return expected | DIFFERENCES.get(name, {})


def constants(layout: Layout) -> dict[str, Tensor]:
    """A state dict in which each tensor is filled with a number of its own; the file stays small."""
    return {name: torch.tensor(float(number)).expand(shape) for number, (name, shape) in enumerate(layout.items())}


def save(name: str, path: Path) -> Path:
    """The layout as its public file holds it."""
    weights = constants(LAYOUTS[name])
    args = argparse.Namespace(lr=1e-4, dilation="dc5" in name, nheads=8, dataset_file="coco", masks=False)
    if "training" in name:
        weights = {f"module.{key}": value for key, value in weights.items()}
        torch.save({"epoch": 60, "state_dict": weights, "optimizer": {}, "best": np.float64(0.5)}, path)
    else:
        torch.save({"model": weights, "args": args, "epoch": np.int64(49)}, path)
    return path


def empty_detector(content: dict) -> DETR:
    """The detector of a checkpoint without values, for which nothing need be drawn."""
    args = small_args(**content["args"])
    with torch.device("meta"):
        return build(args, num_class_logits(content["model"]))


@layouts
def test_every_tensor_is_used_or_named(tmp_path: Path, name: str) -> None:
    path = save(name, tmp_path / f"{name}.pth")
    content, known = read_checkpoint(path, {})
    assert content["args"] == architecture(name)
    assert content["stage"] == ("pretrain" if name in UNFINISHED else "finetune")
    detector = empty_detector(content).to_empty(device="cpu")
    report = load_origin(detector, Origin(path, content, resumes=True, foreign=known), keep_class_head=True)

    names = list(LAYOUTS[name])
    prefix = "module." if "training" in name else ""
    found = {names[int(number)] for value in detector.state_dict().values() for number in value.aminmax()}
    left_over = {key.removeprefix(prefix) for key in report.left_over}
    assert found | left_over >= set(names)
    assert not found & left_over
    assert report.new == []
    for key, value in detector.state_dict().items():
        numbers = [float(names.index(source)) for source in sources_in(names, key)]
        assert [float(number) for number in value.aminmax()] == [min(numbers), max(numbers)], key


def sources_in(names: list[str], key: str) -> list[str]:
    """The tensors that a parameter is to be made of."""
    if key == "query_embed.weight" and "transformer.tgt_embed.weight" in names:
        return [key, "transformer.tgt_embed.weight"]
    if key == "query_embed.weight" and "refpoint_embed.weight" in names:
        return ["refpoint_embed.weight"]
    if key in names:
        # layers without refinement share a head: the values of the last layer count
        shared = re.fullmatch(r"((?:class|bbox)_embed)\.\d+\.(.+)", key)
        alone = shared and not any(name.startswith("transformer.decoder.bbox_embed") for name in names)
        return [f"{shared[1]}.5.{shared[2]}"] if alone else [final_name(names, key)]
    if key.startswith("backbone.0.body."):
        return [key.replace("backbone.0.body.", "backbone.")]
    place = "head." if "head.class_embed.weight" in names else "pred_head."
    return [place + re.sub(r"^(class|bbox)_embed\.\d", r"\1_embed", key)]


def final_name(names: list[str], key: str) -> str:
    """The heads that the decoder uses have two names, the decoder's and their own."""
    plain = key.removeprefix("transformer.decoder.")
    return plain if plain.startswith(("class_embed", "bbox_embed")) and plain in names else key


@layouts
def test_categories_of_finished_detectors_are_cocos(tmp_path: Path, name: str) -> None:
    content, _ = read_checkpoint(save(name, tmp_path / "file.pth"), {})
    if name in UNFINISHED:
        assert content["categories"] is None
    else:
        assert {c["id"]: c["name"] for c in content["categories"]} == COCO_CATEGORIES
        assert all(c["label"] == c["id"] for c in content["categories"])


def test_queries_of_the_authors_come_before_what_the_decoder_starts_with(tmp_path: Path) -> None:
    layout = PRETRAINING_LAYOUTS["siamese-detr-deformable-multi-scale-r50-training"]
    weights = constants(layout)
    weights |= {name: torch.randn(300, 256) for name in ("query_embed.weight", "transformer.tgt_embed.weight")}
    torch.save({"state_dict": weights}, tmp_path / "file.pth")
    content, _ = read_checkpoint(tmp_path / "file.pth", {})
    queries = content["model"]["query_embed.weight"]
    assert torch.equal(queries[:, :256], weights["query_embed.weight"])
    assert torch.equal(queries[:, 256:], weights["transformer.tgt_embed.weight"])


def converted_by_the_authors(layout: Layout, *, deformable: bool) -> Layout:
    """What tools/convert_to_detr.py of Siamese DETR's authors makes of their training files."""
    converted = {}
    for name, shape in layout.items():
        part = name.split(".")[0]
        if part in ("transformer", "query_embed", "input_proj", "patch2query"):
            converted[name] = shape
        elif part == "backbone":
            converted[name.replace("backbone.", "backbone.0.body.", 1)] = shape
        elif part == "head" or name.startswith("pred_head.bbox_embed") or ("class_embed" in name and deformable):
            plain = name.split(".", 1)[1]
            numbered = deformable and ("bbox_embed" in name or name.startswith("pred_head.class_embed"))
            head, rest = plain.split(".", 1)
            names = [f"{head}.{layer}.{rest}" for layer in range(6)] if numbered else [plain]
            converted |= dict.fromkeys(names, shape)
    return converted


@pytest.mark.parametrize("name", [name for name in UNFINISHED if "training" in name.split("-")])
def test_what_the_authors_convert_is_told_apart(tmp_path: Path, name: str) -> None:
    """UP-DETR and Siamese DETR both keep patch2query."""
    converted = converted_by_the_authors(LAYOUTS[name], deformable="deformable" in name)
    torch.save({"model": constants(converted)}, tmp_path / "converted.pth")
    content, known = read_checkpoint(tmp_path / "converted.pth", {})
    assert content["args"] == architecture(name)
    assert (content["stage"], content["categories"]) == ("pretrain", None)
    siamese = name.startswith("siamese")
    assert known.kind == ("Siamese DETR, converted by its authors' tool" if siamese else "UP-DETR's pretraining")
    heads = {"patch2query"} if siamese else {"patch2query", "feature_align", "criterion"}
    assert {key.split(".")[0] for key in known.left_over} == heads
    wanted = empty_detector({**content, "model": {"class_embed.bias": torch.zeros(3)}}).state_dict()
    missing = {key for key in wanted if key not in content["model"]}
    assert all(key.startswith("class_embed.") for key in missing)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("detr-r50", "public DETR family"),
        ("detreg-detr-r50-pretrain", "DETReg's pretraining"),
        ("up-detr-r50-pretrain", "UP-DETR's pretraining"),
        ("up-detr-r50-pre-norm-pretrain", "UP-DETR's pretraining"),
        ("siamese-detr-vanilla-r50-training", "Siamese DETR in the layout of its training"),
        ("up-detr-conditional-r50-training", "UP-DETR in the layout of Siamese DETR's code"),
    ],
)
def test_kinds(tmp_path: Path, name: str, kind: str) -> None:
    assert read_checkpoint(save(name, tmp_path / "file.pth"), {})[1].kind == kind


@layouts
def test_one_wrong_shape_names_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A tensor of each part in turn gets one row, or one column, too many."""
    layout = LAYOUTS[name]
    content, known = read_checkpoint(save(name, tmp_path / "file.pth"), {"nheads": 8})
    detector = {key: value.detach() for key, value in empty_detector(content).state_dict(keep_vars=True).items()}
    used = {source.removeprefix("module.") for key in detector for source in known.sources[key]}
    one_of_each = {tuple(key.split(".")[:2]): key for key in layout if key in used}
    for key in one_of_each.values():
        tells_how_many = {0} if key in ("query_embed.weight", "refpoint_embed.weight") else set()
        for axis in {0, len(layout[key]) - 1} - tells_how_many:
            wrong = [size + (index == axis) for index, size in enumerate(layout[key])]
            weights = constants({**layout, key: wrong})
            monkeypatch.setattr(foreign, "read_content", lambda _, weights=weights: {"model": weights})
            with pytest.raises(CheckpointError, match=r"file\.pth: .*--[a-z]+"):
                check_weights(detector, read_checkpoint(tmp_path / "file.pth", {})[0]["model"], tmp_path / "file.pth")


@layouts
def test_a_missing_tensor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    weights = constants(LAYOUTS[name])
    key = next(key for key in weights if key.endswith("encoder.layers.3.norm2.bias"))
    del weights[key]
    content, _ = read_checkpoint(save(name, tmp_path / "file.pth"), {})
    detector = empty_detector(content).state_dict(keep_vars=True)
    monkeypatch.setattr(foreign, "read_content", lambda _: {"model": weights})
    content, _ = read_checkpoint(tmp_path / "file.pth", {})
    with pytest.raises(CheckpointError, match=f"lacks {re.escape(key)}.*--enc_layers"):
        check_weights(detector, content["model"], tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("wrap", "place"),
    [(lambda w: w, ""), (lambda w: {"state_dict": w}, "encoder_q."), (lambda w: {"model": w}, "backbone.")],
    ids=["swav", "moco", "authors-body"],
)
def test_a_backbone_alone(tmp_path: Path, wrap: object, place: str) -> None:
    weights = {name.replace("module.", f"module.{place}"): value for name, value in constants(SWAV_LAYOUT).items()}
    torch.save(wrap(weights), tmp_path / "body.pth")
    content, known = read_checkpoint(tmp_path / "body.pth", {})
    assert content["stage"] == known.kind == "backbone"
    assert content["args"] == {"backbone": "resnet50"}


@pytest.mark.parametrize("name", [*PRETRAINING_LAYOUTS, "swav-r50"])
def test_compact_layouts_equal_the_listed_ones(real_data: Path, name: str) -> None:
    listed = json.loads((real_data / "layouts" / f"{name}.json").read_text())
    compact = {**PRETRAINING_LAYOUTS, "swav-r50": SWAV_LAYOUT}[name]
    assert {key: tuple(shape) for key, shape in listed.items()} == compact


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"encoder.x": torch.zeros(1)}, "not recognised: its 1 tensors"),
        ({}, "it is empty"),
        ({"detr.model.decoder.x": torch.zeros(1)}, "segmentation model"),
        ({"transformer.decoder.layers.0.norm1.weight": torch.zeros(1)}, "--detr"),
    ],
)
def test_what_is_none_of_them(tmp_path: Path, weights: dict, told: str) -> None:
    torch.save(weights, tmp_path / "file.pth")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "file.pth", {})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_resnet(tmp_path: Path) -> None:
    torch.save(constants(detr_layout((3, 8, 36, 3))), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="--backbone timm:NAME"):
        read_checkpoint(tmp_path / "file.pth", {})


@pytest.mark.parametrize(("kind", "told"), [("dict", 4), ("namespace", 4), ("wrong type", 8), ("nothing", 8)])
def test_heads_are_taken_from_saved_arguments(tmp_path: Path, kind: str, told: int) -> None:
    saved = {"dict": {"nheads": 4}, "namespace": argparse.Namespace(nheads=4), "wrong type": {"nheads": "4"}}
    torch.save({"model": constants(DEFORMABLE), "args": saved.get(kind)}, tmp_path / "file.pth")
    content, known = read_checkpoint(tmp_path / "file.pth", {"nheads": None})
    assert content["args"]["nheads"] == told
    assert content["args"]["enc_n_points"] == 32 // told
    assert ("nheads" in known.assumed) == (told == 8)


def test_levels_that_this_project_has_not(tmp_path: Path) -> None:
    layout = DEFORMABLE | {"transformer.level_embed": (3, 256)}
    torch.save(constants(layout), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="3 feature levels; --num_feature_levels"):
        read_checkpoint(tmp_path / "file.pth", {})
