"""Help and errors of the command line."""

import argparse

import pytest

import main_finetune
import main_predict
import main_pretrain
from util.args import finetune_parser, pretrain_parser

PARSERS = {
    "pretrain": lambda: pretrain_parser(main_pretrain.choices()),
    "finetune": lambda: finetune_parser(main_finetune.choices()),
    "predict": main_predict.make_parser,
}


def error_of(parser, argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--batchsize", "3"], "error: --batchsize: no such flag; did you mean --batch_size?"),
        (["--num-queries=3"], "error: --num-queries: no such flag; did you mean --num_queries?"),
        (["--xyzzy"], "error: --xyzzy: no such flag; --help lists them all"),
        (["--detr", "condtional"], "error: --detr: 'condtional' is none of conditional, vanilla, "),
        (["--detr", "condtional"], "; did you mean conditional?"),
        (["--best_by", "ap50"], "did you mean AP50?"),
        (["--lr", "fast"], "error: --lr: invalid float value: 'fast'"),
        (["--lr"], "error: --lr: expected one argument"),
        (["folder", "other"], "error: 'folder other': not understood; every value follows its --FLAG"),
    ],
)
def test_an_error_is_one_line_that_names_the_nearest(argv, told, capsys):
    assert told in error_of(PARSERS["finetune"](), argv, capsys)


def test_a_script_with_positions(capsys):
    argv = ["a.png", "--resume", "x", "--treshold", "0.5"]
    with pytest.raises(SystemExit):
        PARSERS["predict"]().parse_intermixed_args(argv)
    assert capsys.readouterr().err == "error: --treshold: no such flag; did you mean --threshold?\n"


@pytest.mark.parametrize("script", PARSERS)
def test_the_help_shows_every_default_and_one_line_of_usage(script):
    parser = PARSERS[script]()
    usage, _, rest = parser.format_help().partition("\n\n")
    assert len(usage.splitlines()) == 1
    formatter = parser._get_formatter()
    for action in parser._actions:
        text = formatter._expand_help(action) if action.help else ""
        is_switch = action.nargs == 0 or action.required
        assert is_switch or "default" in text, action.option_strings
        assert action.help, action.option_strings
        titles = [group.title for group in parser._action_groups if action in group._group_actions]
        assert isinstance(action, argparse._HelpAction) or titles != ["options"] or script == "predict", titles
    assert "default: 0.0001" in rest or script == "predict"
