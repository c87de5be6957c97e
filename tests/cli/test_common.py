"""Options that all commands share, and both spellings of every option."""

import argparse
import re
from pathlib import Path

import pytest

import eagle_hf
from eagle_hf.checkpoints import exporting
from eagle_hf.cli.convert import LAYOUTS
from eagle_hf.cli.main import COMMANDS, make_parser


VALUES = ("1", "0.5", "text", "0=1GiB", "{}", "float32", "")  # nearly every option understands one of them


@pytest.fixture(scope="module")
def parsers():
    subparsers = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for parser in subparsers.choices.values():
        for action in parser._actions:
            action.required = False
    return subparsers.choices


def options(parser):
    """Every option but `--help`, with the spellings that it was declared with."""
    return [a for a in parser._actions if a.option_strings and not isinstance(a, argparse._HelpAction)]


def read(parser, option, action):
    """What an option makes of a value."""
    if action.nargs == 0:
        return vars(parser.parse_known_args([option])[0])[action.dest]
    number = action.nargs if isinstance(action.nargs, int) else 1
    for value in [str(choice) for choice in action.choices or VALUES]:
        try:
            return vars(parser.parse_known_args([option, *[value] * number])[0])[action.dest]
        except SystemExit:
            continue
    return parser._option_string_actions[option]  # objects of `TrainingArguments` that nobody can type


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_takes_both_spellings(parsers, command, capsys):
    parser = parsers[command]
    assert len(options(parser)) >= 1
    for action in options(parser):
        for option in action.option_strings:
            spellings = {option, *(f"--{option[2:].replace(a, b)}" for a, b in ("-_", "_-"))}
            readings = [read(parser, spelling, action) for spelling in sorted(spellings)]
            assert all(reading == readings[0] for reading in readings), spellings


def test_an_option_is_declared_once_and_shown_in_one_spelling(parsers):
    for command in set(COMMANDS) - {"train"}:  # whose options `transformers` declares in both
        for action in options(parsers[command]):
            shown = [option for option in action.option_strings if option.startswith("--")]
            assert not [option for option in shown if "-" in option[2:]], (command, shown)
    declared = re.compile(r'"--(?:threads|dtype)"')
    folder = Path(eagle_hf.__file__).parent / "cli"
    assert [path.name for path in folder.glob("*.py") if declared.search(path.read_text())] == ["common.py"]


def test_the_layouts_of_convert_are_all_that_can_be_written():
    assert ("eagle_hf", *exporting.LAYOUTS) == LAYOUTS
