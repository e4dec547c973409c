"""Numbers and sizes on the command line: whatever is no value of an option is refused in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from test_quantize_options import MODEL

import ikq
from ikq.__main__ import main
from ikq.cli import build_parser
from ikq.cli.numbers import at_least, number, positive_number, size, whole_number


def options_with_types() -> Iterator[tuple[str, str]]:
    """Verbs and their options that take something else than a text."""
    (verbs,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for verb, parser in verbs.choices.items():
        for action in parser._actions:
            if action.type is not None and action.option_strings:
                yield verb, action.option_strings[-1]


@pytest.mark.parametrize("text", ["-1G", "-.5x", "4x"])
def test_every_option_names_the_value_that_it_does_not_take(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    n = 0
    for verb, option in options_with_types():
        if option in ("--cache-type-k", "--cache-type-v"):
            continue  # names, which the engine knows
        with pytest.raises(SystemExit) as e:
            main([verb, option, text])
        assert e.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert text in last, (verb, option, last)
        assert "expected one argument" not in last
        n += 1
    assert n > 200


def test_values_that_look_like_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipe", str(MODEL), "--size", "4M", "--types", "-q4_k"])
    assert "--types: expected one argument (one that begins with - stands behind =" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (whole_number, ["-3", "0", "12"], ["1.5", "", "99999999999999999999"]),
        (at_least(1), ["1"], ["0", "-1", "x"]),
        (number, ["-3.5", "inf", "1e3"], ["nan", "-nan", "", "1,5"]),
        (positive_number, ["0.5"], ["0", "-2", "inf", "nan", ""]),
        (size, ["4G", "500m", "12"], ["-1G", "0", "4X", "", "99999999999999999999"]),
    ],
)
def test_kinds(kind, good: list[str], bad: list[str]) -> None:
    for text in good:
        kind(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


@pytest.mark.parametrize(
    "words",
    [
        ["quantize", "--dry-run", MODEL, "Q8_0", "--split-max-tensors", "-2"],
        ["quantize", "--dry-run", MODEL, "Q8_0", "--only-layer", "-2"],
        ["quantize", "--dry-run", MODEL, "Q8_0", "--only-layer", "9999999999"],
        ["quantize", "--dry-run", MODEL, "Q8_0", "--max-ram", "99999999999999999999"],
        ["recipe", MODEL, "--size", "4M", "-t", "-2"],
        ["recipe", MODEL, "--size", "4M", "-c", "0"],
        ["recipe", MODEL, "--size", "99999999999999999999"],
        ["bench", "-m", MODEL, "-t", "-2"],
        ["bench", "-m", MODEL, "-t", "1,0"],
        ["bench", "-m", MODEL, "-ub", "-2"],
        ["bench", "-m", MODEL, "-ncmoe", "-2"],
        ["gguf-split", "--dry-run", MODEL, "x", "--split-max-tensors", "0"],
    ],
)
def test_numbers_that_the_core_does_not_take(words: list, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([str(word) for word in words])
    except SystemExit as e:
        code = e.code
    assert code == 2
    assert words[-1].split(",")[-1] in capsys.readouterr().err


def test_programs_are_told_as_well() -> None:
    for keywords in ({"split_max_tensors": -1}, {"only_layer": -1}, {"only_layer": 2**40}):
        with pytest.raises(ikq.RefusedError, match="-1|1099511627776"):
            ikq.plan_quantization(MODEL, None, "Q8_0", **keywords)  # type: ignore[arg-type]
