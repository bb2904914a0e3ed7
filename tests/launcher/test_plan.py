"""`triax plan`, from its arguments to a run file that `triax check` accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triax.launcher.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama3-70b-16x8.toml"


def test_the_best_layout_is_a_run_file_that_check_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan.toml"
    arguments = ["plan", str(EXAMPLE), "--gpus", "128", "--gpu", "h100", "--output", str(output)]
    assert main(arguments) == 0
    report = capsys.readouterr().out.replace(f"check {output}", "")
    assert max(map(len, report.splitlines())) <= 80
    assert main(["check", str(output), "--world-size", "128"]) == 0
    assert "no problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    "request_", ["gpt2-124m 16 a100", "llama3.2-1b 6 l40s", "mixtral-8x7b 16 h200"]
)
def test_a_preset_becomes_a_run_file_that_check_accepts(
    request_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, gpus, gpu = request_.split()
    output = tmp_path / "plan.toml"
    command = ["plan", "--preset", preset, "--gpus", gpus, "--gpu", gpu, "--days", "2"]
    assert main([*command, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "2.0 days" in text
    assert max(map(len, text.splitlines()[:-2])) <= 80
    assert main(["check", str(output), "--world-size", gpus]) == 0
    if preset == "mixtral-8x7b":
        assert "expert all-to-all" in " ".join(text.replace(":", "").split())


def test_json_has_the_ranked_layouts_and_the_memory_of_every_rank(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["plan", str(EXAMPLE), "--gpus", "128", "--as-is", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["rank"] for each in found["memory_by_rank"]] == [0, 1, 2, 3]
    assert found["best"]["tensor"] == 8
    assert found["best"]["memory_bytes"] == max(
        sum(value for part, value in each.items() if part not in ("rank", "layers", "host"))
        for each in found["memory_by_rank"]
    )
    assert {each["axis"] for each in found["messages"]} == {"shard", "tensor", "pipeline"}


def test_every_figure_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / ("long" * 20) / EXAMPLE.name
    config.parent.mkdir()
    config.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["plan", str(config), "--gpus", "128", "--as-is", "--explain"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    explained = text[text.index("where the figures come from") :]
    for name in ("main params", "activations", "bubble", "MFU", "checkpoint", "Korthikanti"):
        assert name in explained


def test_a_budget_of_flops_is_divided_by_each_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--flops", "5.76e23"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for word in ("approach 1", "approach 2", "approach 3", "refit", "over-training", "lr "):
        assert word in text


def test_money_lasts_as_long_as_its_price_says(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--preset", "llama3.2-1b", "--gpus", "8", "--gpu", "h100"]
    price = ["--budget-usd", "4800", "--usd-per-gpu-hour", "2.5"]
    assert main([*command, *price]) == 0
    assert "10.0 days, 1.92K GPU hours, 4,800 USD" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--preset", "llama3-405b", "--gpus", "8"], "take more GPUs"),
        (["--preset", "llama3-8b"], "--gpus N"),
        (["--preset", "llama4", "--gpus", "8"], "did you mean"),
        (["--preset", "llama3-8b", "--gpus", "8", "--gpu", "h101"], "did you mean h100"),
        (["--preset", "llama3-8b", "--gpus", "8", "--gpu", "a100", "--precisions", "fp8"], "fp8"),
        ([], "CONFIG"),
        (["--preset", "llama3-8b", "--gpus", "8", "--budget-usd", "9"], "--usd-per-gpu-hour"),
        ([str(EXAMPLE), "--gpus", "100", "--as-is"], "100 processes"),
    ],
)
def test_what_can_not_be_planned_is_said(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    command = ["plan", str(EXAMPLE), "--gpus", "128", "--as-is", "--picture", str(picture)]
    assert main(command) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
