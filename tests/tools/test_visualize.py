"""The pictures of visualize.py on real data sets and detectors, made small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_finetune
from datasets import build_detection
from datasets.images import list_images
from datasets.loader import make_eval_loader
from datasets.pretext.two_view import TwoViewTransform
from datasets.proposals.store import write_proposals
from models import run_pictures
from models.postprocess import PostProcess
from models.predictor import Predictor
from tests.predicting import save_predicting
from tools import visualize
from tools.looking.pictures import collect
from tools.render_scenes import render_data_set
from util.args import finetune_parser
from util.errors import UserError
from util.nested_tensor import NestedTensor


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visualize") / "data"
    render_data_set(folder, 1, 3, 2, size=96)
    return folder


def test_views_of_the_pretraining_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "views.png"
    flags = "--scales 96 --max_size 160 --crop_size 16 --num_regions 2 --backbone resnet18 --batch_size 2".split()
    visualize.main(["views", "--out", str(out), "--count", "2", "--data_path", str(data / "unlabelled"), *flags])
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * run_pictures.LEGIBLE_SIDE
        assert picture.height > 2 * run_pictures.LEGIBLE_SIDE
    assert f"wrote {out}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"]


def test_proposals_on_the_images_they_belong_to(data: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "proposals", tmp_path / "proposals.png"
    paths = list_images(data / "unlabelled")
    boxes = np.array([[10, 10, 60, 60], [20, 30, 90, 80]], dtype=np.float32)
    write_proposals(
        folder,
        paths=paths,
        boxes=[boxes] * len(paths),
        scores=[np.ones(2)] * len(paths),
        method="edgebox",
        parameters={},
    )
    flags = (
        f"--data_path {data}/unlabelled --proposals edgebox --proposal_dir {folder} --backbone resnet18 --batch_size 2"
    )
    drawn = [visualize.draw_proposals(flags.split(), count=2, num_boxes=num_boxes) for num_boxes in (1, 2)]
    assert drawn[0].size == drawn[1].size
    share = (np.asarray(drawn[0]) != np.asarray(drawn[1])).any(-1).mean()
    assert 0.001 < share < 0.2  # only the second box, and a digit of the caption
    visualize.main(["proposals", "--out", str(out), "--count", "2", *flags.split()])
    with Image.open(out) as picture:
        assert (np.asarray(picture) == np.asarray(drawn[1])).all()


def test_proposals_to_draw_must_be_named(data: Path, tmp_path: Path) -> None:
    flags = ["--data_path", str(data / "unlabelled"), "--batch_size", "2"]
    with pytest.raises(UserError, match="--proposals edgebox or selective_search, and --proposal_dir"):
        visualize.main(["proposals", "--out", str(tmp_path / "p.png"), *flags])


def test_a_method_without_two_views_is_one_clear_error(data: Path, tmp_path: Path) -> None:
    flags = ["--data_path", str(data / "unlabelled"), "--batch_size", "2", "--method", "updetr"]
    with pytest.raises(UserError, match="--method updetr has no two views to draw"):
        visualize.main(["views", "--out", str(tmp_path / "v.png"), *flags])


def test_a_sample_is_drawn_in_the_colours_of_the_image() -> None:
    """The views and crops of a plain image are plain; the photometric part is switched off here."""
    transform = TwoViewTransform(
        scales=[96], max_size=200, num_regions=1, crop_size=16, view_iou=0.5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    image = Image.new("RGB", (128, 96), (10, 120, 250))
    sample = transform(image, np.zeros((0, 4), np.float32), np.random.default_rng(0))
    for values in (sample.views, sample.crops):
        values[:] = torch.tensor([10, 120, 250]).view(3, 1, 1)
    picture = np.asarray(run_pictures.draw_sample(sample))
    share = (np.abs(picture.astype(int) - [10, 120, 250]) <= 1).all(-1).mean()
    assert share > 0.4


class Detector(torch.nn.Module):
    """Finds one object, of label 2, in the lower right quarter of every image."""

    def forward(self, images: NestedTensor) -> dict[str, torch.Tensor]:
        logits = torch.full((1, len(images), 1, 3), -9.0)
        logits[..., 2] = 9.0
        boxes = torch.tensor([0.75, 0.75, 0.5, 0.5]).expand(1, len(images), 1, 4)
        return {"pred_logits": logits, "pred_boxes": boxes}


def test_detections_and_truth_are_in_pixels_of_the_file(data: Path) -> None:
    args = finetune_parser(main_finetune.choices()).parse_args(["--data_path", str(data)])
    args.dataset_file, args.eval_size, args.eval_max_size = "coco", 64, 200
    args.batch_size, args.num_workers = 2, 0
    dataset = build_detection(args, "val", (0.5,) * 3, (0.5,) * 3)
    predictor = Predictor(
        Detector(), PostProcess("focal", top_k=1), dataset.categories, backbone="resnet18", device=torch.device("cpu")
    )
    cases = collect(predictor, make_eval_loader(dataset, args))
    annotations = json.loads((data / "annotations" / "instances_val.json").read_text())
    for case, record in zip(cases, annotations["images"], strict=True):
        width, height = record["width"], record["height"]
        np.testing.assert_allclose(case.found, [[width / 2, height / 2, width, height]], rtol=1e-6)
        assert case.found_labels.tolist() == [2]
        xywh = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == record["id"]]
        assert case.truth.tolist() == [[x, y, x + w, y + h] for x, y, w, h in xywh]


def test_pictures_of_a_run_are_in_pixels_of_the_file(data: Path) -> None:
    args = finetune_parser(main_finetune.choices()).parse_args(["--data_path", str(data)])
    args.dataset_file, args.eval_size, args.eval_max_size = "coco", 64, 200
    dataset = build_detection(args, "val", (0.5,) * 3, (0.5,) * 3)
    predictor = Predictor(
        Detector(), PostProcess("focal", top_k=1), dataset.categories, backbone="resnet18", device=torch.device("cpu")
    )
    results = list(run_pictures.detect_and_compare(predictor, dataset, 2))
    assert len(results) == 2
    annotations = json.loads((data / "annotations" / "instances_val.json").read_text())
    for index, (image, truth, found) in enumerate(results):
        record = annotations["images"][index]
        assert image.size == (record["width"], record["height"])
        width, height = image.size
        torch.testing.assert_close(found["boxes"], torch.tensor([[width / 2, height / 2, width, height]]))
        assert found["labels"].tolist() == [2]
        xywh = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == record["id"]]
        expected = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in xywh], dtype=torch.float32)
        torch.testing.assert_close(truth["boxes"], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_predictions_of_two_checkpoints_side_by_side(
    data: Path, checkpoint: Path, tmp_path: Path, threshold: float | None
) -> None:
    flags = ["--resume", str(checkpoint), "--data_path", str(data), "--num_workers", "0", "--device", "cpu"]
    alone, both = (visualize.draw_predictions(flags, 2, threshold, beside) for beside in (None, str(checkpoint)))
    assert both.height == alone.height
    assert 1.3 * alone.width < both.width < 1.6 * alone.width


def test_checkpoints_are_told_apart() -> None:
    one, other = Path("runs/a/checkpoint.pth"), Path("runs/b/checkpoint.pth")
    assert visualize.name_checkpoints([one, other]) == ["a", "b"]
    assert visualize.name_checkpoints([one, one.with_name("best.pth")]) == [str(one), "runs/a/best.pth"]


def test_predictions_need_a_checkpoint(data: Path, tmp_path: Path) -> None:
    argv = ["predictions", "--out", str(tmp_path / "found.png"), "--data_path", str(data)]
    with pytest.raises(UserError, match="--resume"):
        visualize.main(argv)


def test_curves_take_the_names_of_the_folders(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    logs = []
    for name in ("siamese", "scratch"):
        (tmp_path / name).mkdir()
        logs.append(str(tmp_path / name / "log.txt"))
        Path(logs[-1]).write_text('{"kind": "train", "step": 1, "loss": 2.0}\n')
    assert visualize.name_runs(logs) == {"siamese": logs[0], "scratch": logs[1]}
    assert visualize.name_runs([str(tmp_path / "siamese"), logs[1]]) == {"siamese": logs[0], "scratch": logs[1]}
    visualize.main(["curves", "--out", str(tmp_path / "curves.png"), *logs])
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_runs_in_folders_of_one_name_are_named_by_their_paths(tmp_path: Path) -> None:
    logs = [str(tmp_path / run / "out" / "log.txt") for run in "ab"]
    assert list(visualize.name_runs(logs)) == [str(tmp_path / run / "out") for run in "ab"]


@pytest.mark.parametrize(("name", "told"), [("nowhere/x.png", "no folder"), ("x.unknown", "unknown image format")])
def test_places_that_cannot_be_written(name: str, told: str, data: Path, tmp_path: Path) -> None:
    flags = "--scales 96 --max_size 160 --crop_size 8 --num_regions 1 --backbone resnet18 --batch_size 2".split()
    argv = ["views", "--out", str(tmp_path / name), "--count", "1", "--data_path", str(data / "unlabelled"), *flags]
    with pytest.raises(UserError, match=told):
        visualize.main(argv)


@pytest.mark.parametrize("command", ["pr", "confusion", "worst"])
def test_closer_looks_are_a_picture_and_figures(data: Path, checkpoint: Path, tmp_path: Path, command: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"{command}.png"
    flags = ["--resume", str(checkpoint), "--data_path", str(data), "--num_workers", "0", "--device", "cpu"]
    visualize.main([command, "--out", str(out), *flags])
    with Image.open(out) as picture:
        assert min(picture.size) > 100
    assert json.loads(out.with_suffix(".json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{command}.json", f"{command}.png"]


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    categories = json.loads((data / "annotations" / "instances_val.json").read_text())["categories"]
    categories = [{**category, "label": label} for label, category in enumerate(categories)]
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pth"
    return save_predicting("conditional", path, categories, num_logits=len(categories))
