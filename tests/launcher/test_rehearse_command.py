"""`triax rehearse`, from its arguments to its exit code."""

from __future__ import annotations

import json

import pytest

from triax.common.errors import ExitCode
from triax.launcher.cli import main

TINY = (
    "--model.num_layers=2",
    "--model.hidden_size=32",
    "--model.num_heads=2",
    "--model.ffn_hidden_size=48",
    "--model.vocab_size=64",
    "--data.seq_len=16",
)


def test_a_step_of_some_ranks_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ("--world-size", "16", "--parallel.tensor=2", "--parallel.pipeline=2")
    assert main(["rehearse", *TINY, *layout, "--rank", "0,8"]) == ExitCode.DONE
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "[0 1]n0" in text, "the mesh is drawn"
    assert "2 of 16 processes rehearsed" in text
    assert "reduce-scatter" in text


def test_what_does_not_fit_ends_with_2_and_names_the_rank(
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = ("--model.vocab_size=131072", "--model.hidden_size=2048")
    device = ("--memory", "4", "--reserved-gib", "3")
    arguments = ["rehearse", *TINY, *large, "--world-size", "1", *device, "--json"]
    assert main(arguments) == ExitCode.BAD_INPUT
    found = json.loads(capsys.readouterr().out)
    assert found["too_large"] == [0]
    [rank] = found["ranks"]
    num_weights = rank["highest"]["main params"] // 4
    assert num_weights > 2 * 131072 * 2048
    assert rank["highest"]["moments"] == 8 * num_weights
    assert rank["peak"]["bytes"] > found["capacity"] == 1 << 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--world-size", "4", "--rank", "4"), "has ranks 0 to 3"),
        (("--world-size", "4", "--rank", "0,x"), "expected ranks such as 0,5"),
        (("--world-size", "6", "--parallel.tensor=4"), "parallel.tensor"),
        (
            ("--world-size", "1", "--memory", "2"),
            "beside the 2.5 GiB of --reserved-gib",
        ),
    ],
)
def test_bad_arguments_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", *TINY, *arguments]) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err
