"""Exported detectors run without this project and give the same detections."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.predictor import load_detector
from tests.predicting import save_predicting, write_images
from tools import export
from tools.exporting import check
from util.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(target: Path, checkpoint: Path, *argv: object) -> Path:
    export.main([str(target), "--resume", str(checkpoint), *map(str, argv)])
    return target


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Path:
    return save_predicting("conditional", tmp_path_factory.mktemp("export") / "c.pth", num_queries=20)


@pytest.fixture(scope="module")
def exported(conditional) -> Path:
    return run(conditional.with_suffix(".onnx"), conditional, "--dynamic")


def test_onnx_takes_batches_of_any_size(conditional, exported, tmp_path):
    paths = write_images(tmp_path, [(90, 64), (64, 100), (80, 80)])
    predictor = load_detector(conditional, device="cpu")
    images = [Image.open(path) for path in paths]
    batches = check.check_batches(predictor, images, None)
    assert len({batch.tensors.shape for batch in batches}) >= 6
    assert bool(batches[-1].mask.any())
    assert check.compare(check.open_file(exported, takes_mask=True), predictor, batches) < 1e-4


def test_the_example_needs_no_torch(conditional, exported, tmp_path):
    (path,) = write_images(tmp_path, [(96, 64)])
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['x', r'{exported}', r'{path}']; "
    code += "import runpy; runpy.run_path('tools/run_onnx.py', run_name='__main__')"
    root = Path(export.__file__).parent.parent
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    wanted = load_detector(conditional, device="cpu")(path)
    lines = told.splitlines()
    assert len(lines) == len(wanted) > 0
    for line, name, score, box in zip(lines, wanted.names, wanted.scores, wanted.boxes, strict=True):
        told_name, told_score, told_box = line.split(" ", 2)
        assert told_name == name
        assert float(told_score) == pytest.approx(float(score), abs=2e-3)
        np.testing.assert_allclose(json.loads(told_box), box.numpy(), atol=0.2)


LARGE = {"eval_size": 128, "eval_max_size": 200}
"""With these sizes none of four feature levels has only one row or column."""


def operators(path: Path) -> int:
    """Calls of deformable attention in a ``.pt2`` file."""
    return sum("ms_deform_attn" in str(node.target) for node in torch.export.load(path).graph.nodes)


def test_pt2_keeps_the_operator(tmp_path):
    checkpoint = save_predicting("deformable", tmp_path / "d.pth", num_feature_levels=1, dec_layers=1)
    assert operators(run(tmp_path / "d.pt2", checkpoint, "--size", 128, 160)) == 2  # an encoder and a decoder layer


@pytest.mark.slow
@pytest.mark.parametrize("refined", [False, True])
def test_pt2_of_any_size(tmp_path, refined):
    checkpoint = save_predicting("deformable", tmp_path / "d.pth", with_box_refine=refined, two_stage=refined, **LARGE)
    assert operators(run(tmp_path / "d.pt2", checkpoint, "--dynamic")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detr", "changes"),
    [
        ("vanilla", {}),
        ("dab", {}),
        ("deformable", {}),
        ("deformable", {"num_feature_levels": 1}),
        ("deformable", {"with_box_refine": True, "two_stage": True}),
    ],
)
def test_onnx_of_every_detector(tmp_path, detr, changes):
    checkpoint = save_predicting(detr, tmp_path / "d.pth", **LARGE, **changes)
    images = write_images(tmp_path / "in", [(97, 64), (64, 101)])
    target = run(tmp_path / "d.onnx", checkpoint, "--dynamic", "--check", *images)
    import onnx

    assert {entry.domain for entry in onnx.load(target).opset_import} <= {"", "ai.onnx"}  # only standard nodes


def test_one_size_and_half_weights(conditional, exported, tmp_path):
    target = run(tmp_path / "half.onnx", conditional, "--size", 64, 96, "--half")
    assert target.stat().st_size < 0.6 * exported.stat().st_size
    (values,) = onnxruntime.InferenceSession(target).get_inputs()
    assert values.shape == [1, 3, 64, 96]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["x.onnx"], "--size H W.*--dynamic"),
        (["x.onnx", "--dynamic", "--size", "64", "64"], "choose one"),
        (["x.tflite", "--dynamic"], "unknown file format"),
        (["nowhere/x.onnx", "--dynamic"], "there is no folder nowhere"),
        (["x.onnx", "--size", "8", "64"], "--height 8: must be at least 32"),
    ],
)
def test_bad_input(conditional, argv, told):
    with pytest.raises(UserError, match=told):
        export.main([*argv, "--resume", str(conditional)])


def test_missing_packages_are_told_with_their_command(conditional, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
        run(tmp_path / "x.onnx", conditional, "--dynamic")


def found(*rows: tuple[int, float, float]) -> check.Found:
    """(label, score, x) of detections in one image."""
    boxes = np.array([[[x, 0.0, x + 0.1, 0.1] for _, _, x in rows]])
    return boxes, np.array([[score for _, score, _ in rows]]), np.array([[label for label, _, _ in rows]])


def test_differences_by_hand():
    same = found((0, 0.9, 0.1), (1, 0.5, 0.2), (1, 0.5, 0.7))
    assert check.difference(same, same) == 0
    assert check.difference(same, found((0, 0.9, 0.1), (1, 0.5, 0.7), (1, 0.5, 0.2))) == 0  # equal scores, any order
    assert check.difference(same, found((0, 0.9, 0.13), (1, 0.5, 0.2), (1, 0.5, 0.7))) == pytest.approx(0.03)
    assert check.difference(same, found((0, 0.8, 0.1), (1, 0.5, 0.2), (1, 0.5, 0.7))) == pytest.approx(0.1)
    assert check.difference(same, found((1, 0.9, 0.1), (1, 0.5, 0.2), (1, 0.5, 0.7))) > 0.3  # another class
    assert check.difference(same, found((0, 0.9, 0.1), (1, 0.5, 0.2), (0, 0.5, 0.4))) < 1e-4  # the last one may differ
