"""The benchmark accounts for the time of a step."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import main_pretrain
from models import PRETEXTS
from tests.models.detectors import randomize
from tests.tiny import COMMON, DETECTOR, PRETRAIN, write_data_set
from tools import benchmark, benchmark_pretrain
from tools.arithmetic import Arithmetic
from tools.benchmark_data import PARTS, PartClock, make_plainly, make_sample
from tools.benchmark_gpu import two_view_batch
from tools.plain_siamese import PlainSiamese
from util.errors import UserError


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_parts_add_up_to_the_step(tmp_path, capsys, stage):
    data = write_data_set(tmp_path / "data")
    flags = [*PRETRAIN, "--data_path", f"{data}/train"] if stage == "pretrain" else [*COMMON, "--data_path", str(data)]
    benchmark.main(["step", stage, "--steps", "3", *flags, *DETECTOR])
    rows = dict(re.findall(r"^ *(\w+) +([-\d.]+) +\(", capsys.readouterr().out, re.MULTILINE))
    times = {name: float(value) for name, value in rows.items()}
    assert set(times) == {*benchmark.PARTS, "other", "step"}
    assert all(times[name] > 0 for name in benchmark.PARTS)
    assert sum(times[name] for name in benchmark.PARTS) <= 1.2 * times["step"]


def test_samples_are_timed_against_the_plain_arrangement(tmp_path, capsys):
    data = write_data_set(tmp_path / "data")
    flags = [*PRETRAIN, "--data_path", f"{data}/train", "--num_workers", "1", *DETECTOR]
    benchmark.main(["data", "--samples", "3", *flags])
    told = capsys.readouterr().out
    rows = {
        name: [float(value) for value in values.split()]
        for name, values in re.findall(r"^(\w+) +([\d. ]+)$", told, re.M)
    }
    assert set(rows) == {*PARTS, "sample"}
    for ours, plain, ratio in rows.values():
        assert ratio == pytest.approx(plain / ours, rel=0.1, abs=0.1)
    assert re.search(r"^samples/s +[\d.]+ +[\d.]+$", told, re.M)
    assert re.search(r"^1 workers, batches of \d+: [\d.]+ samples/s$", told, re.M)
    assert re.search(r"^memory of their own, MB: \d+ after one epoch, \d+ after another$", told, re.M)


def test_parts_of_the_benchmark_make_the_sample(tmp_path):
    """The benchmark times what the data set does, and the plain code gives the same samples."""
    data = write_data_set(tmp_path / "data")
    args, _ = main_pretrain.parse([*PRETRAIN, "--data_path", f"{data}/train", *DETECTOR])
    dataset = main_pretrain.build_dataset(args)
    views, crops = make_sample(dataset, 1, PartClock())
    sample, normalise = dataset[0, 1], dataset.transform.normalise
    assert torch.equal(views, normalise(sample.views))
    assert torch.equal(crops, normalise(sample.crops))
    for ours, plain in zip((views, crops), make_plainly(dataset, 1, PartClock()), strict=True):
        assert ours.shape == plain.shape
        assert (ours - plain).abs().mean() < 3 / normalise.std.min()


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="--samples 0"):
        benchmark.main(["data", "--samples", "0"])


def test_methods_without_two_views_are_refused():
    with pytest.raises(UserError, match="--method updetr has no two views"):
        benchmark.main(["data", "--method", "updetr", "--data_path", "."])


def test_no_steps_are_refused():
    with pytest.raises(UserError, match="--steps 0"):
        benchmark.main(["step", "pretrain", "--steps", "0"])


def test_both_scorers_are_timed(capsys):
    pytest.importorskip("faster_coco_eval")
    benchmark.main(["eval", "--images", "12", "--classes", "3", "--detections", "20", "--processes", "4"])
    told = capsys.readouterr().out
    assert re.search(r"^pycocotools 2\S+ +[\d.]+ s ", told, re.M)
    assert re.search(r"^faster-coco-eval \S+ +[\d.]+ s ", told, re.M)
    assert float(re.search(r"differ by at most (\S+)$", told, re.M)[1]) < 1e-12
    assert re.search(r"over 4 processes: each sends [\d.]+ MiB and receives [\d.]+ MiB", told)


@pytest.mark.slow
def test_scale(capsys, monkeypatch):
    monkeypatch.setattr("tools.benchmark_scale.SCALING_SIZE", (96, 128))
    monkeypatch.setattr("tools.benchmark_scale.SCALING_ROUNDS", 1)
    benchmark.main(["scale", "--images", "24000", "--folders", "10", "--processes", "4", "--batch_size", "7"])
    told = capsys.readouterr().out
    rows = re.findall(r"^([18]) x (\S.*\S) +([\d.]+) +(-?\d+) +(\d+)$", told, re.M)
    assert [(count, name) for count, name, *_ in rows] == [
        (count, name) for count in "18" for name in ("every process lists", "first start", "later start")
    ]
    assert "23,996 images once, 0 twice, 4 left out" in told
    sent = {name: int(size) for name, size in re.findall(r"^(\w+) +all-reduces (\d+) MiB", told, re.M)}
    assert sent["vanilla"] < sent["conditional"] < 100
    assert re.search(r"a step takes [\d.]+ s with one process, [\d.]+ s with two: 0\.\d\d of", told)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_steps_for_a_gpu_in_small(capsys, stage):
    """Every column has a number; what is compiled launches fewer operations, and what is recorded a few."""
    torch._dynamo.reset()
    argv = "--detectors vanilla --precisions none --batch_sizes 2 --size 64 96 --steps 1 --device cpu".split()
    own = "--num_regions 5 --crop_size 32".split() if stage == "pretrain" else []
    benchmark.main(["gpu", stage, *argv, *DETECTOR, *own])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("vanilla")]
    assert [row[:4] for row in rows] == [["vanilla", "none", mode, "2"] for mode in ("eager", "compiled", "graphs")]
    assert all(float(row[4]) > 0 and float(row[5]) > 0 and row[6] == "-" and int(row[7]) > 0 for row in rows)
    eager, compiled, graphs = (int(row[8]) for row in rows)
    assert compiled < 0.7 * eager
    assert graphs < 0.25 * eager
    assert rows[0][-1] == "1.00"


@pytest.mark.slow
@pytest.mark.parametrize("detr", ["vanilla", "deformable"])
def test_exported_forms_in_small(capsys, detr):
    benchmark.main(["export", "--detr", detr, "--rounds", "1", "--size", "64", "96"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["eager", ".onnx", ".pt2", "AOTInductor"]
    assert all(float(row[row.index("ms") - 1]) > 0 for row in rows)


def test_operations_are_counted():
    convolution, linear = torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Linear(7, 11)
    with Arithmetic() as arithmetic:
        convolution(torch.ones(2, 3, 8, 6))
        linear(torch.ones(4, 7)).sum().backward()
    of_convolution, of_linear = 2 * (2 * 8 * 6) * 5 * (3 * 3 * 3), 2 * 4 * 7 * 11
    assert arithmetic.operations == of_convolution + 2 * of_linear  # the input of the layer needs no gradient


def test_attention_and_feed_forward_are_counted():
    """What our code calls on a CPU: the fused attention, and products that are added in place."""
    q = torch.ones(2, 3, 5, 4, requires_grad=True)
    with Arithmetic() as arithmetic:
        F.scaled_dot_product_attention(q, q, q)
    assert arithmetic.operations == 2 * (2 * 2 * 3) * 5 * 5 * 4
    with Arithmetic() as arithmetic:
        torch.zeros(3, 5).addmm_(torch.ones(3, 7), torch.ones(7, 5))
    assert arithmetic.operations == 2 * 3 * 5 * 7


PRETRAINING = [*DETECTOR, *"--batch_size 3 --num_regions 5 --crop_size 32".split()]


@pytest.mark.parametrize("detr", benchmark_pretrain.DETECTORS)
def test_the_authors_arrangement_has_the_same_losses_and_gradients(detr):
    torch.manual_seed(0)
    args = benchmark_pretrain.parse(["--detr", detr, *PRETRAINING, "--dropout", "0", "--query_jitter", "0"])
    detector = main_pretrain.build_detector(args, None)
    randomize(detector)  # zero-initialised weights included, so that errors show
    # In float64, because the global loss amplifies rounding where a batch has few images.
    method = PRETEXTS["siamese"].build(args, detector).train().double()
    plain = PlainSiamese(args, method).train().double()
    batch = two_view_batch(args, args.batch_size, 64, 96)
    batch = replace(batch, views=batch.views.double(), boxes=batch.boxes.double(), crops=batch.crops.double())
    loss, wanted = method(batch)[0], plain(batch)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=0)
    loss.backward()
    wanted.backward()
    gradients = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    ours = {name: value.grad for name, value in method.named_parameters() if value.grad is not None}
    assert {name.removeprefix("detector.") for name in ours} == gradients.keys()
    for name, value in ours.items():
        close = gradients[name.removeprefix("detector.")]
        assert (value - close).abs().max() <= 1e-4 * value.abs().max() + 1e-5, name


@pytest.mark.parametrize("argv", [["--matching", "own"], ["--recipe", "fast"], ["--backbone", "timm:test_resnet"]])
def test_what_the_authors_arrangement_does_not_have_is_refused(argv):
    with pytest.raises(UserError, match="the authors' arrangement has"):
        benchmark.main(["pretrain", *argv])


@pytest.mark.slow
def test_a_pretraining_step_in_small(capsys):
    benchmark.main(["pretrain", "--rounds", "1", "--size", "64", "96", *PRETRAINING])
    told = capsys.readouterr().out
    rows = re.findall(r"^(ours|authors) +([\d.]+) +\(([\d.]+) \.\. ([\d.]+)\) +(\d+) +(\d+)$", told, re.M)
    assert [row[0] for row in rows] == ["ours", "authors"]
    assert all(float(low) <= float(middle) <= float(high) for _, middle, low, high, _, _ in rows)
    assert all(0 < int(before) <= int(peak) for *_, peak, before in rows)
    (_, ours, *_, our_peak, _), (_, theirs, *_, their_peak, _) = rows
    times, peaks = (float(number) for number in re.search(r"times ([\d.]+), of peaks ([\d.]+)", told).groups())
    assert times == pytest.approx(float(theirs) / float(ours), abs=0.01)
    assert peaks == pytest.approx(int(their_peak) / int(our_peak), abs=0.01)
    assert 0 < float(re.search(r"^limit of ours ([\d.]+) ms", told, re.M)[1]) < float(ours)
