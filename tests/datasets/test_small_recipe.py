"""``--recipe small``: what it takes from the data, and what wins over it."""

import contextlib
import io

import pytest

import main_finetune
from datasets.records import RecordBuilder
from datasets.small_recipe import queries, sizes
from tests.tiny import SMALL_DETECTOR, write_data_set
from util.args import finetune_parser
from util.checkpoint import load_file, save_file
from util.errors import CheckpointError
from util.files import write_json


def records(image_sizes, objects):
    """Images of these sizes, each with so many objects and one crowd."""
    builder = RecordBuilder()
    for number, (size, count) in enumerate(zip(image_sizes, objects, strict=True)):
        image = builder.add_image(f"{number}.jpg", number, size)
        for _ in range(count):
            builder.add_box(image, (0, 0, 9, 9), 0)
        builder.add_box(image, (0, 0, 9, 9), 0, crowd=True)
    place = {"root": "", "source": "", "metric": "coco", "categories": [{"label": 0, "id": 1, "name": "a"}]}
    return builder.pack(**place, place=lambda *_: "")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images with short sides of 80 to 130 pixels, two objects each."""
    return write_data_set(tmp_path_factory.mktemp("data"))


def parse(data, *argv):
    return look(data, *argv)[0]


def look(data, *argv):
    """The arguments, and what is told about the recipe."""
    args, _, looked = main_finetune.parse_and_look(["--data_path", str(data), *argv])
    return args, looked.recipe


@pytest.mark.parametrize(
    ("image_sizes", "scales", "max_size"),
    [
        ([(416, 416)] * 3, [288, 320, 352, 384, 416], 693),
        ([(640, 480), (480, 640), (9, 9)], [320, 352, 384, 416, 448, 480], 799),
        ([(60, 40)], [224, 256, 288, 320], 533),
        ([(4000, 3000)], list(range(576, 801, 32)), 1333),
    ],
)
def test_sizes_are_near_the_median_of_the_images_own(image_sizes, scales, max_size):
    part = sizes(records(image_sizes, [1] * len(image_sizes)))
    assert part.values == {"scales": scales, "max_size": max_size}


@pytest.mark.parametrize(
    ("objects", "usual", "expected"),
    [
        ([0, 0], 100, 100),
        ([3, 66], 100, 100),
        ([3, 67], 100, 150),
        ([3, 1], 300, 100),
        ([12], 300, 150),
        ([28], 300, 300),
        ([250], 300, 400),
    ],
)
def test_queries_by_the_most_crowded_image(objects, usual, expected):
    assert queries(records([(99, 99)] * len(objects), objects), usual).values == {"num_queries": expected}


def test_a_small_set_gets_it_and_is_told_each_part(data):
    args, told = look(data, "--backbone_weights", "x.pth")
    assert (args.recipe, args.dataset_file, args.detr) == ("small", "coco", "deformable")
    assert (args.scales, args.max_size, args.eval_size, args.eval_max_size) == ([224, 256, 288, 320], 533, 320, 533)
    assert (args.epochs, args.lr_drop, args.max_steps) == (600, 480, None)  # 3,000 steps of two of ten images
    assert (args.eval_every, args.save_every_epochs) == (30, 30)
    assert (args.lr, args.lr_backbone, args.warmup_steps) == (4e-4, 2e-5, 100)
    assert (args.dropout, args.num_queries, args.batch_size, args.augment) == (0, 100, 2, "detr")
    assert told.startswith("--recipe small: 10 labelled training images, fewer than 2,000")
    flags = [word for line in told.splitlines() if line.startswith("  --") for word in line.partition(": ")[0].split()]
    parsed = vars(finetune_parser(main_finetune.choices()).parse_args(flags))
    assert all(parsed[name] == getattr(args, name) for name in parsed if f"--{name}" in flags)
    changed = ("detr", "scales", "max_size", "epochs", "eval_every", "lr", "warmup_steps", "dropout", "num_queries")
    assert {f"--{name}" for name in changed} <= set(flags)


def test_a_resnet_that_would_start_random_gets_published_weights(data, trained):
    assert parse(data).backbone_weights == "auto"
    assert parse(data, "--backbone_weights", "none").backbone_weights == "none"
    assert parse(data, "--backbone", "timm:test_resnet").backbone_weights is None, "its maker may have none"
    assert parse(data, "--pretrain", f"{trained}/checkpoint.pth").backbone_weights is None
    assert parse(data, "--recipe", "paper").backbone_weights is None


def test_the_detectors_own_rate_is_doubled_and_its_many_queries_are_not_needed(data):
    for detr, lr, lr_backbone in (("deformable", 4e-4, 2e-5), ("conditional", 2e-4, 1e-5)):
        args = parse(data, "--detr", detr)
        assert (args.lr, args.lr_backbone, args.num_queries) == (lr, lr_backbone, 100)


def test_the_detector_is_the_one_that_learns_fastest_unless_something_of_it_is_decided(data, trained):
    assert parse(data).detr == "deformable"
    assert parse(data, "--detr", "vanilla").detr == "vanilla"
    for argv in (("--dilation",), ("--pretrain", f"{trained}/checkpoint.pth"), ("--recipe", "paper")):
        assert parse(data, *argv).detr == "conditional"


def test_what_is_typed_wins(data):
    typed = "--scales 96 --lr 0.001 --max_steps 40 --num_queries 7 --eval_every 2 --dropout 0.3 --augment none"
    args, told = look(data, *typed.split())
    assert (args.recipe, args.scales, args.max_size, args.eval_size) == ("small", [96], 533, 96)
    assert (args.lr, args.num_queries, args.dropout, args.eval_every) == (0.001, 7, 0.3, 2)
    assert (args.epochs, args.lr_drop, args.max_steps, args.lr_drop_step) == (None, None, 40, 32)
    assert (args.save_every_epochs, args.warmup_steps) == (1, 1)  # eight epochs
    flags = [word.rstrip(":") for word in told.split() if word.startswith("--")]
    assert not set(flags) & {word for word in typed.split() if word.startswith("--")}


def test_few_of_the_images_are_trained_on_for_as_many_steps(data):
    assert parse(data, "--train_fraction", "0.4").epochs == 1500
    assert parse(data, "--train_images_per_class", "3", "--batch_size", "3").epochs == 1500
    assert parse(data, "--accum_steps", "5").epochs == 3000


@pytest.mark.parametrize(("count", "recipe"), [(1999, "small"), (2000, "paper")])
def test_the_limit_is_2000_labelled_training_images(tmp_path, count, recipe):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(count)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81} for n in range(count)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    write_json(content, tmp_path / "a.json")
    files = ["--train_ann", f"{tmp_path}/a.json", "--train_images", str(tmp_path)]
    files += ["--val_fraction", "0", "--damaged", "skip"]
    args, _, looked = main_finetune.parse_and_look(files)
    assert (args.recipe, "--recipe small" in looked.recipe) == (recipe, recipe == "small")
    assert (max(args.scales), args.epochs) == ((480, 12) if recipe == "small" else (800, 50))
    args, _ = main_finetune.parse([*files, "--recipe", "small"])
    assert (args.recipe, args.epochs) == ("small", 12)


def test_the_papers_recipe_does_not_look_at_the_data(tmp_path):
    args = parse(tmp_path / "nothing", "--dataset_file", "coco", "--recipe", "paper")
    assert (args.recipe, args.scales[-1], args.epochs, args.dropout) == ("paper", 800, 50, 0.1)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a small run of one step, with what it printed as ``told.txt``."""
    out = tmp_path_factory.mktemp("small")
    flags = [*SMALL_DETECTOR, *"--detr conditional --device cpu --num_workers 0 --scales 64 --max_size 90".split()]
    argv = ["--data_path", str(data), "--output_dir", str(out), *flags, "--max_steps", "1", "--eval_every", "0"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        main_finetune.main(argv)
    (out / "told.txt").write_text(told.getvalue())
    return out


def test_a_run_tells_its_data_then_the_recipe_then_itself(data, trained):
    lines = (trained / "told.txt").read_text().splitlines()
    begins = (f"{data}: COCO, 10 images to train on", "--recipe small: ", "data  ")
    places = [[line.startswith(begin) for line in lines].index(True) for begin in begins]
    assert places == sorted(places)


def test_a_resumed_run_keeps_what_was_chosen(trained):
    saved = load_file(trained / "checkpoint.pth")["args"]
    assert (saved["recipe"], saved["dropout"], saved["scales"]) == ("small", 0, [64])
    args, _, looked = main_finetune.parse_and_look(["--resume", "auto", "--output_dir", str(trained)])
    assert not looked.recipe
    chosen = [name for name in saved if name not in ("resume", "device")]
    assert [getattr(args, name) for name in chosen] == [saved[name] for name in chosen]
    with pytest.raises(CheckpointError, match="--recipe paper does not fit"):
        main_finetune.parse(["--resume", "auto", "--output_dir", str(trained), "--recipe", "paper"])


def test_a_resumed_run_of_an_earlier_version_keeps_the_papers_recipe(data, trained, tmp_path):
    content = load_file(trained / "checkpoint.pth")
    for name in ("recipe", "dropout"):
        del content["args"][name]
    save_file(content, tmp_path / "old.pth")
    args, told = look(data, "--resume", f"{tmp_path}/old.pth")
    assert (args.recipe, args.scales, args.dropout, told) == ("paper", [64], 0.1, "")


def test_a_pretrained_detector_keeps_its_number_of_queries(data, trained):
    args, told = look(data, "--pretrain", f"{trained}/checkpoint.pth")
    assert (args.recipe, args.num_queries, args.epochs, args.lr_backbone) == ("small", 10, 600, 5e-5)
    assert "--num_queries" not in told


def test_the_arguments_of_another_run_win(data, tmp_path):
    args = parse(data, "--lr", "0.5")
    write_json(vars(args), tmp_path / "args.json")
    again, told = look(data, "--args_from", str(tmp_path), "--epochs", "5")
    assert len(told.splitlines()) == 1  # nothing is left to choose
    assert (again.recipe, again.lr, again.scales, again.epochs, again.lr_drop) == ("small", 0.5, args.scales, 5, 4)
    write_json({"lr": 0.5}, tmp_path / "args.json")  # of an earlier version
    old = parse(data, "--args_from", str(tmp_path))
    assert (old.recipe, old.lr, max(old.scales)) == ("paper", 0.5, 800)
