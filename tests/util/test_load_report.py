"""The three lists that loading leaves, as text."""

from util.load_report import LoadReport


def test_nothing_new_and_nothing_left():
    report = LoadReport(loaded=["a.weight", "a.bias"])
    assert report.describe("file.pth") == (
        "file.pth: 2 tensors loaded\n  newly made: nothing\n  left over in the file: nothing"
    )


def test_few_names_are_written_out_and_many_are_counted():
    report = LoadReport(
        loaded=[f"body.{n}" for n in range(5)],
        new=["class_embed.weight", "class_embed.bias"],
        left_over=[
            "fc.weight",
            *(f"module.projection_head.{n}.weight" for n in range(4)),
            "module.prototypes.weight",
            *(f"layer{n}.bn.num_batches_tracked" for n in range(20)),
            "epoch",
            "fc.bias",
        ],
    )
    first, new, left_over = report.describe("swav.pth").splitlines()
    assert first == "swav.pth: 5 tensors loaded"
    assert new == "  newly made: class_embed.weight, class_embed.bias"
    assert left_over == (
        "  left over in the file: fc.weight, fc.bias, module.projection_head.* (4), module.prototypes.weight, "
        "*.num_batches_tracked (20), epoch"
    )
