"""The `triax` command: its help, its errors and its exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.launcher.cli import COMMANDS, main

CONFIG = """
[run]
name = "test"
dir = "{folder}/runs"
[model]
preset = "mini-10m"
[data]
sources = [{{ path = "out/train" }}]
seq_len = 64
prepare = {{ inputs = ["python-stdlib"], output = "out", vocab_size = 4096 }}
[batch]
global_batch_size = 8
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return str(path)


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["check", "CONFIG"], ["bench", "--help"]]
)
def test_quick_commands_import_no_torch(argv: list[str], config: str) -> None:
    argv = [config if argument == "CONFIG" else argument for argument in argv]
    result = python(
        """
        import sys
        from triax.launcher.cli import main
        code = main(sys.argv[1:])
        heavy = [name for name in ("torch", "datasets", "transformers") if name in sys.modules]
        sys.exit(f"imported {heavy}" if heavy else code)
        """,
        *argv,
    )
    assert result.returncode == 0, result.stderr


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "example:" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    "name", [*COMMANDS, "tokenizer train", "data prepare", "data inspect", "checkpoint export"]
)
def test_every_command_s_help_has_an_example_and_fits_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"triax {name}" in shown
    assert "\nexample" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_unknown_commands_get_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chek", "run.toml"]) == 2
    error = capsys.readouterr().err
    assert error == "triax: error: unknown command 'chek'; did you mean `triax check`?\n"
    assert main(["xyzzy"]) == 2
    assert "there are init, check, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        "--nonsense",
        "check",
        "check a b",
        "check -x",
        "eval run --data data --sequences 0",
        "generate run --temperature nan",
        "generate run --top-k -1",
        "checkpoint export run --output out --seq-len 0",
    ],
)
def test_usage_errors_exit_with_2(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv.split()) == 2
    assert "error:" in capsys.readouterr().err


def test_check_shows_what_the_run_would_be(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check", "--nproc", "2", "--batch.micro_batch_size", "4", config, "--budget.tokens=1M"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "no problems" in shown
    assert "10.1M parameters" in shown
    assert "999,936 tokens in 1,953 steps" in shown
    assert "8 x 64 = 512 tokens a step, 4 at a time" in shown
    assert "a token, in bf16 or fp32, by the hardware" in shown
    assert "ZeRO stage 1, 2 processes" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_check_reports_every_problem(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check", config, "--world-size", "3", "--optimizer.lr=x", "--batch.micro=1"]
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("triax: error: ")
    assert "2 problems" in error
    assert "command line: optimizer.lr: expected a number" in error
    assert "command line: batch.micro: unknown key" in error


def test_train_reports_a_bad_config_before_it_imports_torch(config: str) -> None:
    result = python(
        """
        import sys
        from triax.launcher.cli import main
        code = main(["train", sys.argv[1], "--nproc-per-node", "3"])
        sys.exit("torch was imported" if "torch" in sys.modules else code)
        """,
        config,
    )
    assert result.returncode == 2
    assert "3 data-parallel processes = 3" in result.stderr


def raising(error: BaseException) -> object:
    class Command:
        @staticmethod
        def add_arguments(_parser: argparse.ArgumentParser) -> None:
            pass

        @staticmethod
        def run(_args: argparse.Namespace) -> int:
            raise error

    return Command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no [bold] luck"), 2, "triax: error: no [bold] luck\n"),
        (KeyboardInterrupt(), 130, "triax: error: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda _name: raising(error))
    assert main(["check"]) == code
    assert capsys.readouterr().err == message


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda _name: raising(AssertionError()))
    with pytest.raises(AssertionError):
        main(["check"])


def test_a_closed_pipe_is_no_error(config: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from triax.launcher.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", code, "check", config],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")
