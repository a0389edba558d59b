"""The command line: recipes, what a checkpoint decides, combinations that cannot work."""

import json
import re
import sys

import pytest

import main_finetune
import main_pretrain
from models import DETECTORS
from util import recipes
from util.args import finetune_parser, pretrain_parser
from util.check_args import check_finetune, check_pretrain
from util.errors import CheckpointError, UserError
from util.schedule import Schedule

DETRS = ["vanilla", "conditional", "deformable", "dab"]
PRETRAIN, FINETUNE = main_pretrain.choices(), main_finetune.choices()


def pretrain(*argv, **start_from):
    args, defaults = recipes.parse(pretrain_parser(PRETRAIN), ["--data_path", "images", *argv], PRETRAIN)
    recipes.complete(args, defaults, PRETRAIN, recipes.pretrain_recipe, **start_from)
    return args


def finetune(*argv, **start_from):
    args, defaults = recipes.parse(finetune_parser(FINETUNE), ["--data_path", "images", *argv], FINETUNE)
    recipes.complete(args, defaults, FINETUNE, recipes.finetune_recipe, **start_from)
    return args


def planned(args, steps_per_epoch):
    """Length of the schedule and the step at which lr drops."""
    schedule = Schedule(steps_per_epoch, 1, **{name: getattr(args, name) for name in recipes.SCHEDULE})
    return schedule.total_steps, schedule.drop_step


@pytest.mark.parametrize(
    ("dataset", "detr", "feature", "weight", "steps", "drop", "scales"),
    [
        ("imagefolder", "conditional", 5, 10, 300_000, 200_000, (320, 480, 600)),
        ("imagefolder", "vanilla", 3, 10, 300_000, 200_000, (320, 480, 600)),
        ("imagefolder", "deformable", 3, 10, 300_000, 200_000, (320, 480, 600)),
        ("coco", "conditional", 3, 0.3, 120_000, 80_000, (480, 800, 1333)),
    ],
)
def test_pretraining_recipes(dataset, detr, feature, weight, steps, drop, scales):
    args = pretrain("--dataset_file", dataset, "--detr", detr)
    assert (args.feature_loss_coef, args.global_loss_coef) == (feature, weight)
    assert planned(args, steps_per_epoch=5000) == (steps, drop)
    assert (min(args.scales), max(args.scales), args.max_size) == scales
    assert (args.set_cost_class, args.cls_loss_coef, args.bbox_loss_coef, args.giou_loss_coef) == (1, 1, 5, 2)
    assert args.lr == 1e-4
    check_pretrain(args, PRETRAIN, world_size=1)


@pytest.mark.parametrize("dataset", ["imagefolder", "coco"])
@pytest.mark.parametrize("detr", DETRS)
def test_recipes_of_the_baselines(detr, dataset):
    up_detr = pretrain("--method", "updetr", "--detr", detr, "--dataset_file", dataset)
    assert (up_detr.num_regions, up_detr.patch_dropout, up_detr.shuffle_queries) == (10, 0.1, False)
    assert (up_detr.cls_loss_coef, up_detr.bbox_loss_coef, up_detr.giou_loss_coef) == (1, 5, 2)
    detreg = pretrain("--method", "detreg", "--detr", detr, "--dataset_file", dataset)
    finetuning = finetune("--detr", detr)
    for name in ("set_cost_class", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef", "eos_coef", "focal_alpha"):
        assert getattr(detreg, name) == getattr(finetuning, name)
    assert detreg.num_proposals == 30
    for args in (up_detr, detreg):
        assert args.feature_loss_coef == 1
        assert args.scales == pretrain("--dataset_file", dataset).scales
        args.batch_size = 1  # there is no batch norm that needs more
        check_pretrain(args, PRETRAIN, world_size=1)


@pytest.mark.parametrize(
    ("detr", "epochs", "drop", "classes", "lr", "from_scratch", "pretrained"),
    [
        ("vanilla", 150, 100, (1, 1), 1e-4, 1e-5, 5e-5),
        ("conditional", 50, 40, (2, 2), 1e-4, 1e-5, 5e-5),
        ("deformable", 50, 40, (2, 2), 2e-4, 2e-5, 2e-5),
        ("dab", 50, 40, (2, 1), 1e-4, 1e-5, 1e-5),
    ],
)
def test_finetuning_recipes(detr, epochs, drop, classes, lr, from_scratch, pretrained):
    args = finetune("--detr", detr)
    assert planned(args, steps_per_epoch=10) == (10 * epochs, 10 * drop)
    assert (args.set_cost_class, args.cls_loss_coef) == classes
    assert (args.lr, args.lr_backbone) == (lr, from_scratch)
    assert (args.eval_size, args.eval_max_size) == (800, 1333)
    check_finetune(args, FINETUNE)
    assert finetune("--detr", detr, "--pretrain", "file").lr_backbone == pretrained


@pytest.mark.parametrize(
    ("detr", "ffn", "queries", "levels", "dropout"),
    [
        ("vanilla", 2048, 100, None, 0.1),
        ("conditional", 2048, 100, None, 0.1),
        ("deformable", 1024, 300, 4, 0.1),
        ("dab", 2048, 300, None, 0.0),
    ],
)
def test_detectors_of_the_paper(detr, ffn, queries, levels, dropout):
    args = pretrain("--detr", detr)
    assert args.dropout == finetune("--detr", detr).dropout == dropout
    assert (args.dim_feedforward, args.num_queries, args.num_feature_levels) == (ffn, queries, levels)
    assert (args.enc_layers, args.dec_layers, args.hidden_dim, args.nheads) == (6, 6, 256, 8)
    points = None if levels is None else 4  # a flag of another detector has no value
    assert (args.enc_n_points, args.dec_n_points, args.with_box_refine, args.two_stage) == (
        points,
        points,
        False,
        False,
    )


def test_what_is_typed_wins():
    args = finetune("--scales", "100", "120", "--max_size", "200", "--epochs", "3")
    assert (args.scales, args.eval_size, args.eval_max_size) == ([100, 120], 120, 200)
    assert planned(args, 7) == (21, 14)  # lr drops at 4/5 of the schedule, in whole epochs
    assert planned(pretrain("--max_steps", "9", "--lr_drop_step", "6"), 7) == (9, 6)


def test_the_checkpoint_decides_the_architecture():
    saved = {"detr": "vanilla", "hidden_dim": 64}
    args = finetune(saved=saved, source="f.pth")
    assert (args.detr, args.hidden_dim, args.enc_layers) == ("vanilla", 64, 6)
    with pytest.raises(CheckpointError, match=r"--hidden_dim 128 does not fit f\.pth.*--hidden_dim 64"):
        finetune("--hidden_dim", "128", saved=saved, source="f.pth")
    finetune("--feature_stride", "32", saved={"feature_stride": None}, source="f.pth")  # the default, typed
    with pytest.raises(CheckpointError, match="--feature_stride 32 does not fit"):
        finetune("--feature_stride", "32", saved={"feature_stride": 16}, source="f.pth")


def test_only_a_resumed_run_keeps_its_number_of_queries():
    saved = {"detr": "vanilla", "num_queries": 50}
    assert finetune(saved=saved).num_queries == 50
    assert finetune("--num_queries", "7", saved=saved).num_queries == 7
    with pytest.raises(CheckpointError, match="--num_queries 7 does not fit"):
        finetune("--num_queries", "7", saved=saved, resumes=True)


def test_arguments_are_filled_in_order():
    """Typed, then the checkpoint's, then the recipe's, then the parser's default."""
    saved = vars(finetune("--detr", "deformable", "--lr", "1", "--lr_backbone", "2", "--dropout", "0.3", "--seed", "8"))
    args = finetune("--lr_backbone", "3", "--seed", "9", saved=saved, resumes=True)
    assert (args.seed, args.lr_backbone, args.lr, args.dropout) == (9, 3, 1, 0.3)
    args = finetune("--lr_backbone", "3", saved=saved)  # starts from the checkpoint: its architecture alone
    assert (args.detr, args.lr_backbone, args.lr, args.dropout, args.seed) == ("deformable", 3, 2e-4, 0.1, 42)


def test_saved_flags_of_other_detectors_are_left_behind():
    """Earlier versions kept a value for them in every checkpoint."""
    saved = {"detr": "vanilla", "enc_n_points": 4, "two_stage": False, "lr_linear_proj_mult": 0.1, "lr": 1.0}
    assert recipes.without_flags_of_others(saved, DETECTORS) == {"detr": "vanilla", "lr": 1.0}
    saved["detr"] = "deformable"
    assert recipes.without_flags_of_others(saved, DETECTORS) == saved


def test_every_flag_is_in_the_help_once():
    for parser in (pretrain_parser(PRETRAIN), finetune_parser(FINETUNE)):
        text = parser.format_help().split("options:")[1]
        for action in parser._actions:
            assert len(re.findall(rf"^  (-h, )?{action.option_strings[-1]}\b", text, re.M)) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--enc_n_points", "4"], "--enc_n_points goes with --detr deformable"),  # whatever the value
        (["--num_queries", "100", "--num_regions", "7"], "--num_queries 100 is not divisible by --num_regions 7"),
        (["--proposals", "edgebox"], "needs --proposal_dir"),
        (["--proposal_dir", "x"], "--proposal_dir needs --proposals NAME"),
        (["--batch_size", "1"], "--no_global_loss"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--view_iou", "1"], "--view_iou"),
        (["--query_jitter", "0.5"], "--query_jitter"),
        (["--augment_device", "cuda", "--device", "cpu"], "--augment_device cuda goes with --device cuda"),
        (["--epochs", "1", "--max_steps", "1"], "choose one"),
        (["--epochs", "1", "--lr_drop_step", "1"], "--lr_drop"),
        (["--max_steps", "1", "--lr_drop", "1"], "--lr_drop_step"),
        (["--hidden_dim", "30", "--nheads", "5"], "--hidden_dim 30"),
        (["--hidden_dim", "64", "--nheads", "5"], "--nheads 5"),
        (["--dropout", "1"], "--dropout"),
        (["--max_steps", "0"], "at least 1"),
        (["--lr", "-1"], "--lr"),
        (["--epochs", "0"], "--epochs 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--global_loss_coef", "-1"], "--global_loss_coef"),
        (["--voc_train", "2007:train"], "--dataset_file voc"),
        (["--num_feature_levels", "4"], "--num_feature_levels goes with --detr deformable"),
        (["--enc_n_points", "8"], "--enc_n_points goes with --detr deformable, not with --detr conditional"),
        (["--method", "detreg", "--focal_alpha", "1.5"], "--focal_alpha 1.5: must lie"),
        (["--focal_alpha", "0.5"], "--focal_alpha 0.5 goes with focal loss"),
        (["--method", "detreg", "--eos_coef", "0.2"], "--eos_coef 0.2 goes with softmax"),
        (["--method", "detreg", "--detr", "vanilla", "--focal_alpha", "0"], "--focal_alpha 0.0 goes with focal loss"),
        (["--detr", "vanilla", "--with_box_refine"], "--with_box_refine goes with --detr deformable"),
        (["--detr", "deformable", "--two_stage"], "--two_stage needs --with_box_refine"),
        (["--detr", "deformable", "--two_stage", "--with_box_refine"], "--two_stage cannot be pretrained"),
        (["--detr", "deformable", "--hidden_dim", "80"], "--hidden_dim 80"),
        (["--detr", "deformable", "--dec_n_points", "0"], "--dec_n_points 0"),
        (["--method", "updetr", "--view_iou", "0.5"], "--view_iou goes with --method siamese, not with"),
        (["--method", "detreg", "--query_jitter", "0.1"], "--query_jitter goes with --method siamese"),
        (["--method", "detreg", "--no_global_loss"], "--no_global_loss goes with"),
        (["--method", "updetr", "--global_loss_coef", "1"], "--global_loss_coef goes with"),
        (["--method", "detreg", "--num_regions", "10"], "--num_regions goes with --method siamese or --method updetr"),
        (["--method", "detreg", "--shuffle_queries"], "--shuffle_queries goes with --method updetr"),
        (["--patch_dropout", "0.1"], "--patch_dropout goes with --method updetr, not with --method siamese"),
        (["--patch_dropout", "0"], "--patch_dropout goes with --method updetr"),
        (["--method", "detreg", "--global_loss_coef", "0"], "--global_loss_coef goes with"),
        (["--num_proposals", "9"], "--num_proposals goes with --method detreg"),
        (["--method", "detreg", "--num_proposals", "0"], "--num_proposals 0"),
        (["--pad_to", "0"], "--pad_to 0: must be at least 1"),
        (["--method", "updetr", "--patch_dropout", "1"], "--patch_dropout 1"),
        (["--method", "updetr", "--num_regions", "7"], "--num_queries 100 is not divisible"),
        (
            ["--method", "updetr", "--proposals", "edgebox", "--proposal_dir", "x"],
            "--method updetr uses random patches",
        ),
        (["--method", "detreg", "--detr", "deformable", "--two_stage", "--with_box_refine"], "cannot be pretrained"),
    ],
)
def test_pretraining_refuses(argv, message):
    with pytest.raises(UserError, match=message) as error:
        check_pretrain(pretrain(*argv), PRETRAIN, world_size=1)
    assert "\n" not in str(error.value)


def test_batch_of_one_is_enough_with_two_processes_or_no_global_loss():
    check_pretrain(pretrain("--batch_size", "1"), PRETRAIN, world_size=2)
    check_pretrain(pretrain("--batch_size", "1", "--no_global_loss"), PRETRAIN, world_size=1)
    check_pretrain(pretrain("--batch_size", "1", "--global_loss_coef", "0"), PRETRAIN, world_size=1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pretrain", "a", "--resume", "b"], "choose one"),
        (["--new_parts", "bbox_embed"], "--new_parts goes with --pretrain"),
        (["--dataset_file", "voc", "--train_ann", "a", "--train_images", "b"], "--dataset_file coco"),
        (["--dataset_file", "coco", "--voc_train", "2007:train"], "--dataset_file voc"),
        (["--train_ann", "a"], "--train_ann FILE and --train_images DIR go together"),
        (["--eval_size", "0"], "--eval_size 0"),
        (["--lr_backbone", "-1"], "--lr_backbone"),
        (["--detr", "deformable", "--lr_linear_proj_mult", "-1"], "--lr_linear_proj_mult -1"),
        (["--lr_linear_proj_mult", "0.5"], "--lr_linear_proj_mult goes with --detr deformable"),
        (["--train_fraction", "0.1", "--train_images_per_class", "3"], "choose one"),
        (["--train_fraction", "0"], "--train_fraction 0"),
        (["--train_fraction", "1.1"], "--train_fraction 1.1"),
        (["--train_images_per_class", "0"], "--train_images_per_class 0"),
        (["--val_fraction", "1"], "--val_fraction 1"),
    ],
)
def test_finetuning_refuses(argv, message):
    with pytest.raises(UserError, match=message):
        check_finetune(finetune(*argv), FINETUNE)


def test_a_flag_of_one_format_says_which_it_is():
    assert finetune().dataset_file == "auto"
    assert finetune("--voc_train", "2007:train").dataset_file == "voc"
    assert finetune("--train_ann", "a", "--train_images", "b").dataset_file == "coco"
    assert pretrain().dataset_file == "imagefolder"


def test_finetuning_needs_data():
    args = finetune()
    args.data_path = None
    with pytest.raises(UserError, match="--data_path"):
        check_finetune(args, FINETUNE)


def test_a_resumed_run_keeps_what_is_not_typed_again():
    typed = ["--epochs", "9", "--lr_drop", "8", "--pretrain", "there", "--scales", "99", "--num_workers", "7"]
    saved = vars(finetune(*typed, "--seed", "5", "--dropout", "0.3", "--tensorboard", "--eval_every", "3"))

    def resumed(*argv):
        return finetune("--resume", "f", *argv, saved=saved, resumes=True)

    args = resumed()
    assert (args.epochs, args.lr_drop, args.scales, args.lr_backbone) == (9, 8, [99], 5e-5)
    assert (args.seed, args.dropout, args.tensorboard, args.eval_every) == (5, 0.3, True, 3)
    assert (args.pretrain, args.num_workers, args.output_dir) == (None, 7, "outputs")
    assert args.lr == 1e-4
    args = resumed("--seed", "42", "--dropout", "0")  # typed, although the one is the default
    assert (args.seed, args.dropout) == (42, 0)
    args = resumed("--max_steps", "7")
    assert (args.epochs, args.lr_drop, args.max_steps, args.lr_drop_step) == (None, None, 7, 6)  # the same share
    args = resumed("--lr_drop", "7")  # a place in the schedule, not another one
    assert (args.epochs, args.lr_drop) == (9, 7)


def test_a_cosine_has_no_drop_and_may_begin_later():
    args = finetune("--lr_schedule", "cosine")
    assert (args.epochs, args.lr_drop, args.lr_drop_step) == (50, None, None)
    check_finetune(args, FINETUNE)
    saved = vars(finetune("--epochs", "9"))
    args = finetune("--resume", "f", "--lr_schedule", "cosine", saved=saved, resumes=True)
    assert (args.epochs, args.lr_drop) == (9, None)
    args = finetune("--resume", "f", saved=vars(args), resumes=True)
    assert (args.lr_schedule, args.lr_drop) == ("cosine", None)
    args = finetune("--resume", "f", "--lr_schedule", "step", saved=vars(args), resumes=True)
    assert (args.lr_schedule, args.epochs, args.lr_drop) == ("step", 9, 7)
    del saved["lr_schedule"]  # a run of before there were two
    assert finetune("--resume", "f", saved=saved, resumes=True).lr_schedule == "step"


def test_a_resumed_run_keeps_its_image_sets():
    saved = vars(finetune("--dataset_file", "voc", "--voc_train", "2007:train", "--voc_val", "2007:val"))
    for argv, expected in ([], ["2007:train"]), (["--voc_train", "2012:train"], ["2012:train"]):
        args = finetune(*argv, saved=saved, resumes=True)
        assert (args.voc_train, args.voc_val) == (expected, ["2007:val"])
    args = finetune("--dataset_file", "coco", saved=saved, resumes=True)
    assert (args.voc_train, args.voc_val) == (None, None)


def write_args(folder, args):
    (folder / "args.json").write_text(json.dumps(vars(args) | {"output_dir": "there", "device": "cpu"}))
    return str(folder / "args.json")


def test_arguments_of_another_run(tmp_path):
    """Typed flags hold first, then the file, then the recipe."""
    typed = ["--detr", "deformable", "--lr", "3e-4", "--epochs", "9", "--num_workers", "7", "--tensorboard"]
    path = write_args(tmp_path, finetune(*typed, "--pretrain", "p.pth"))
    args = finetune("--args_from", path, "--seed", "8")
    assert (args.detr, args.num_feature_levels, args.lr, args.epochs, args.lr_drop) == ("deformable", 4, 3e-4, 9, 7)
    assert (args.seed, args.num_workers, args.tensorboard, args.pretrain) == (8, 7, True, "p.pth")
    assert (args.output_dir, args.device, args.resume) == ("outputs", "auto", None)  # of this run
    assert finetune("--args_from", str(tmp_path), "--lr", "1").lr == 1  # its folder will do
    args = finetune("--args_from", path, "--max_steps", "10")
    assert (args.epochs, args.lr_drop, args.max_steps, args.lr_drop_step) == (None, None, 10, 8)


def test_another_detector_leaves_behind_what_was_the_others(tmp_path):
    path = write_args(tmp_path, finetune("--detr", "deformable", "--two_stage", "--with_box_refine", "--lr", "3e-4"))
    args = finetune("--args_from", path, "--detr", "vanilla")
    assert (args.num_feature_levels, args.two_stage, args.eos_coef, args.focal_alpha) == (None, False, 0.1, None)
    assert (args.dim_feedforward, args.num_queries, args.lr) == (2048, 100, 3e-4)
    check_finetune(args, FINETUNE)


def test_a_checkpoint_and_the_arguments_of_another_run(tmp_path):
    """The file is as if typed: the detector of --pretrain must be the same; a resumed run says the same again."""
    path = write_args(tmp_path, finetune("--hidden_dim", "64", "--lr", "3e-4"))
    saved = vars(finetune("--args_from", path, "--epochs", "3"))
    again = finetune("--args_from", path, "--resume", "auto", saved=saved, resumes=True)
    assert (again.epochs, again.lr, again.hidden_dim) == (50, 3e-4, 64)  # the file's length is as good as typed
    with pytest.raises(CheckpointError, match=r"--hidden_dim 64 does not fit f\.pth"):
        finetune("--args_from", path, saved={"detr": "conditional", "hidden_dim": 128}, source="f.pth")
    with pytest.raises(UserError, match="--resume FILE goes on with that run's own arguments"):
        finetune("--args_from", path, "--resume", "f.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--args_from .*args\.json: No such file"),
        ("{", "not JSON"),
        ("[1]", "holds a list, not the arguments of a run"),
        ('{"a": 1}', r"holds no arguments of main_finetune\.py"),
        ('{"lr": "fast"}', "its argument lr is 'fast'"),
        ('{"detr": "conditonal"}', "its argument detr is 'conditonal'"),
        ('{"lr": 1, "method": "siamese"}', r"of a run of main_pretrain\.py, not of main_finetune\.py"),
    ],
)
def test_a_file_without_arguments(tmp_path, content, message):
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    with pytest.raises(UserError, match=message):
        finetune("--args_from", str(tmp_path / "args.json"))


def test_flags_of_another_version_are_left_out(tmp_path, capsys):
    (tmp_path / "args.json").write_text('{"lr": 1.0, "of_old": 3}')
    assert finetune("--args_from", str(tmp_path)).lr == 1
    assert "left out, because there are no such flags: --of_old" in capsys.readouterr().out


def test_a_resumed_run_finds_its_data(capsys):
    """What lies where need not be typed again; data that are typed are wholly typed."""
    typed = ["--proposals", "edgebox", "--proposal_dir", "boxes", "--val_path", "val", "--val_proposal_dir", "more"]
    saved = vars(pretrain(*typed))
    capsys.readouterr()

    def resumed(*argv):
        args, defaults = recipes.parse(pretrain_parser(PRETRAIN), ["--resume", "auto", *argv], PRETRAIN)
        recipes.complete(args, defaults, PRETRAIN, recipes.pretrain_recipe, saved=saved, source="f", resumes=True)
        return args.data_path, args.proposal_dir, args.val_path, args.val_proposal_dir

    assert resumed() == ("images", "boxes", "val", "more")
    told = "data of the resumed run: --data_path images --proposal_dir boxes --val_path val --val_proposal_dir more"
    assert told in capsys.readouterr().out
    assert resumed("--proposal_dir", "b 2") == ("images", "b 2", "val", "more")
    assert resumed("--data_path", "elsewhere") == ("elsewhere", None, None, None)
    saved = vars(finetune("--train_ann", "a", "--train_images", "b", "--val_ann", "c", "--val_images", "d"))
    args = finetune("--resume", "auto", saved=saved, resumes=True)  # --data_path is typed here
    assert args.train_ann is None


def test_tensorboard_is_looked_for_before_anything_is_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard needs the package tensorboard: pip install tensorboard"):
        check_finetune(finetune("--tensorboard"), FINETUNE)


def test_the_fast_recipe_fills_what_is_not_typed():
    fast = pretrain("--recipe", "fast", "--lr", "1e-3", "--dataset_file", "coco")
    assert (fast.matching, fast.region_nms, fast.content_in, fast.contrast_loss_coef) == ("own", 0.5, "tgt", 0.5)
    assert (fast.lr, fast.dropout, fast.warmup_steps, fast.global_loss_coef) == (1e-3, 0.0, 100, 0.3)
    assert fast.feature_loss_coef == 3  # all else is the paper's
    check_pretrain(fast, PRETRAIN, world_size=2)
    paper = pretrain("--dataset_file", "coco")
    assert (paper.recipe, paper.matching, paper.region_nms, paper.content_in) == ("paper", "free", None, "query_pos")
    assert (paper.contrast_loss_coef, paper.dropout, paper.warmup_steps, paper.lr) == (0, 0.1, 0, 1e-4)


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--recipe", "fast", "--method", "updetr"], "--recipe fast goes with --method siamese, not with"),
        (["--region_nms", "0"], "--region_nms 0.0: must lie in"),
        (["--contrast_loss_coef", "1", "--feature_loss_coef", "0"], "--contrast_loss_coef needs"),
        (["--val_fraction", "1"], "--val_fraction 1.0: must lie between 0 and 1"),
        (["--val_fraction", "0.1", "--val_path", "x"], "choose one"),
        (["--val_path", "x", "--proposals", "edgebox", "--proposal_dir", "p"], "needs --val_proposal_dir"),
        (["--val_proposal_dir", "x"], "--val_proposal_dir goes with --val_path"),
        (["--warmup_steps", "-1"], "--warmup_steps -1: must be at least 0"),
        (["--lr_schedule", "cosine", "--lr_drop_step", "5", "--max_steps", "9"], "cosine has no drop"),
    ],
)
def test_what_measuring_and_the_recipe_cannot_work_with(argv, match):
    with pytest.raises(UserError, match=match):
        check_pretrain(pretrain(*argv), PRETRAIN, world_size=2)
