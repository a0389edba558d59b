"""Where the time goes. `step` prints milliseconds for each part of a training step, medians over several steps; `msda`
compares the compiled operator with plain PyTorch, `detector` a whole detector with that of transformers, `pretrain` a
step of pretraining with the arrangement of the authors' code, `export` exported forms with eager mode, `data` the
making of two-view samples with plain Pillow and torchvision, `eval` the scores by faster-coco-eval with those by
pycocotools. `scale` says what 1.3 million images and 64 processes cost, as far as one machine can show. `gpu` compares
training steps eager, compiled and recorded as CUDA graphs, in float32 and in 16 bits.

    python tools/benchmark.py step pretrain --dataset_file imagefolder --data_path DIR --batch_size 2
    python tools/benchmark.py step finetune --steps 20 --data_path DIR --detr vanilla
    python tools/benchmark.py msda --rounds 10
    python tools/benchmark.py detector --detr conditional --device cuda --batch_size 4
    python tools/benchmark.py pretrain --detr conditional --rounds 5
    python tools/benchmark.py export --detr conditional
    python tools/benchmark.py data --num_workers 2 --dataset_file imagefolder --data_path DIR
    python tools/benchmark.py eval --images 5000
    python tools/benchmark.py scale
    python tools/benchmark.py gpu pretrain --device cuda --detectors conditional --batch_sizes 8 32

The flags that `step`, `data`, `gpu` and `pretrain` do not know themselves are those of main_pretrain.py or
main_finetune.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine
import main_finetune
import main_pretrain
from models import DETECTORS
from tools.benchmark_data import benchmark_data
from tools.benchmark_detector import THEIRS, benchmark_detector
from tools.benchmark_eval import benchmark_eval
from tools.benchmark_export import benchmark_export
from tools.benchmark_gpu import benchmark_gpu
from tools.benchmark_msda import benchmark_msda
from tools.benchmark_pretrain import DETECTORS as OF_AUTHORS
from tools.benchmark_pretrain import benchmark_pretrain
from tools.benchmark_scale import benchmark_scale
from tools.clock import milliseconds
from training import Training
from util.check_args import at_least
from util.parser import DocFormatter, Parser
from util.precision import AMP_TYPES
from util.script import run_script, select_device, start

PARTS = ("data", "backbone", "transformer", "matching", "losses", "backward", "optimizer")
WARM_UP_STEPS = 2


def main(argv: list[str] | None = None) -> None:
    """Parse the benchmark's own arguments and hand the rest to the script that is measured."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    counts = ("steps", "samples", "rounds", "batch_size", "images", "classes", "detections", "processes", "folders")
    at_least(args, 1, *(name for name in counts if name in args))
    if rest and args.command not in ("step", "data", "gpu", "pretrain"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command == "step":
        benchmark_step(args.stage, args.steps, rest)
    elif args.command == "data":
        benchmark_data(args.samples, rest)
    elif args.command == "gpu":
        benchmark_gpu(
            args.stage,
            detectors=args.detectors,
            precisions=args.precisions,
            batch_sizes=args.batch_sizes,
            size=tuple(args.size),
            steps=args.steps,
            device=select_device(args.device),
            argv=rest,
        )
    elif args.command == "eval":
        benchmark_eval(args.rounds, args.images, args.classes, args.detections, args.processes)
    elif args.command == "scale":
        benchmark_scale(args.images, args.folders, args.processes, args.batch_size)
    elif args.command == "msda":
        benchmark_msda(args.rounds, getattr(torch, args.dtype), args.batch_size, select_device(args.device))
    elif args.command == "pretrain":
        benchmark_pretrain(args.detr, args.rounds, tuple(args.size), rest)
    elif args.command == "export":
        benchmark_export(args.detr, args.rounds, tuple(args.size))
    else:
        benchmark_detector(args.detr, args.rounds, args.batch_size, select_device(args.device))


def make_parser() -> argparse.ArgumentParser:
    """The benchmark's own command line."""
    parser = Parser("benchmark.py", description=__doc__, formatter_class=DocFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="milliseconds for each part of a training step")
    step.add_argument("stage", choices=["pretrain", "finetune"])
    step.add_argument("--steps", type=int, default=10, help="steps that are measured")
    msda = commands.add_parser("msda", help="multi-scale deformable attention, compiled and in PyTorch")
    msda.add_argument("--rounds", type=int, default=7, help="rounds that are measured")
    msda.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    detector = commands.add_parser("detector", help="a detector, this one and that of transformers")
    export = commands.add_parser("export", help="an exported detector: size, and milliseconds beside eager mode")
    export.add_argument("--size", nargs=2, type=int, default=(640, 800), metavar=("H", "W"), help="of the image")
    pretrain = commands.add_parser("pretrain", help="a pretraining step, ours and as the authors' code arranges it")
    pretrain.add_argument("--size", nargs=2, type=int, default=(352, 448), metavar=("H", "W"), help="of the views")
    for command, detectors, usual in (
        (detector, THEIRS, "deformable"),
        (export, DETECTORS, "deformable"),
        (pretrain, OF_AUTHORS, "conditional"),
    ):
        command.add_argument("--detr", choices=list(detectors), default=usual)
        command.add_argument("--rounds", type=int, default=3, help="rounds that are measured")
    for command in (msda, detector):
        command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        command.add_argument("--batch_size", type=int, default=1, help="images")
    data = commands.add_parser("data", help="two-view samples a second, by part, against a plain arrangement")
    data.add_argument("--samples", type=int, default=50, help="samples that are measured, spread over the data set")
    add_large_benchmarks(commands)
    return parser


def add_large_benchmarks(commands: argparse._SubParsersAction) -> None:
    """What is measured for large runs: scores, scale, GPUs."""
    scores = commands.add_parser("eval", help="seconds of COCO's scores by both packages, and of gathering")
    scores.add_argument("--rounds", type=int, default=1, help="rounds that are measured")
    scores.add_argument("--images", type=int, default=5000)
    scores.add_argument("--classes", type=int, default=80)
    scores.add_argument("--detections", type=int, default=100, help="of each image")
    scores.add_argument("--processes", type=int, default=64, help="that share the images, simulated")
    scale = commands.add_parser(
        "scale", help="start-up, coverage, bytes and checkpoints of a large run, and two processes against one"
    )
    scale.add_argument("--images", type=int, default=1_300_000, help="empty files in the folder for temporary files")
    scale.add_argument("--folders", type=int, default=1000)
    scale.add_argument("--processes", type=int, default=64, help="of the simulated run")
    scale.add_argument("--batch_size", type=int, default=4, help="images per process")
    gpu = commands.add_parser(
        "gpu", help="training steps, eager, compiled and recorded, float32 and 16 bits, on made-up images"
    )
    gpu.add_argument("stage", choices=["pretrain", "finetune"])
    usual = ["vanilla", "conditional", "deformable"]
    gpu.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=usual)
    gpu.add_argument("--precisions", nargs="+", choices=list(AMP_TYPES), default=["none", "bf16"])
    gpu.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 32], help="images")
    gpu.add_argument("--size", nargs=2, type=int, default=(384, 512), metavar=("H", "W"), help="of the images")
    gpu.add_argument("--steps", type=int, default=10, help="steps that are measured")
    gpu.add_argument("--device", choices=["cpu", "cuda"], default="cuda")


def benchmark_step(stage: str, num_steps: int, argv: list[str]) -> None:
    """Train ``num_steps`` steps as the script would and print the median milliseconds of every part."""
    # On a GPU every kernel is waited for, or its time would not fall into the part that launched it.
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    script = {"pretrain": main_pretrain, "finetune": main_finetune}[stage]
    with tempfile.TemporaryDirectory() as folder:
        args, origin = script.parse([*argv, "--output_dir", folder])
        device = start(args)
        training, loader, *_ = script.build(args, origin, device)
        rows = measure_steps(training, loader, args, device, num_steps)
    print(f"{stage} {args.detr} {args.backbone}, batch {args.batch_size} x {args.accum_steps}, on {device}")
    print(f"median of {len(rows)} steps, milliseconds")
    for name in (*PARTS, "other", "step"):
        values = [row[name] for row in rows]
        print(f"{name:>12} {median(values):10.1f}   ({min(values):.1f} .. {max(values):.1f})")


def measure_steps(
    training: Training, loader: DataLoader, args: argparse.Namespace, device: torch.device, num_steps: int
) -> list[dict[str, float]]:
    """Milliseconds of each part in each of ``num_steps`` training steps, after a warm-up.

    A part is what the code names by ``record_function``; "step" is the wall clock around the whole step, "other"
    what no part accounts for. The profiler itself costs some per cent, and on a GPU waiting for each kernel costs the
    overlap of host and device: the shares tell where the time goes, "step" is slower than in training.
    """
    training.method.train()
    rows, batches = [], iter(())
    for step in range(WARM_UP_STEPS + num_steps):
        if step % training.schedule.steps_per_epoch == 0:
            loader.batch_sampler.set_position(step // training.schedule.steps_per_epoch, 0)
            batches = iter(loader)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            began = milliseconds(device)
            engine.train_step(training.method, training, batches, args, device)
            elapsed = milliseconds(device) - began
        if step >= WARM_UP_STEPS:
            rows.append(parts_of(profiler) | {"step": elapsed})
            rows[-1]["other"] = elapsed - sum(rows[-1][name] for name in PARTS)
    return rows


def parts_of(profiler: profile) -> dict[str, float]:
    """Milliseconds of wall time of every part."""
    times = dict.fromkeys(PARTS, 0.0)
    for event in profiler.key_averages():
        if event.key in times and event.device_type == DeviceType.CPU:
            times[event.key] += event.cpu_time_total / 1e3
    return times


if __name__ == "__main__":
    run_script(main)
