"""`triax completion`: what the shells are told, asked of a real bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from triax.launcher.cli import COMMANDS, main
from triax.launcher.terminal.completion import SHELLS

ASK = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _triax
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each shell's script."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return folder


def completed(scripts: Path, *words: str) -> list[str]:
    result = subprocess.run(
        ["bash", "--norc", "-c", ASK, "ask", str(scripts / "bash"), *words],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert not result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["triax", "pl"], ["plan"]),
        (["triax", "--v"], ["--version"]),
        (["triax", "data", "pre"], ["prepare"]),
        (["triax", "data", "prepare", "x", "--tok"], ["--tokenizer", "--tokens-per-shard"]),
        (["triax", "checkpoint", "convert", "c", "--to", ""], ["deepspeed", "native"]),
        (["triax", "train", "run.toml", "--optimizer.l"], ["--optimizer.lr=",
         "--optimizer.lr_scales="]),
        (["triax", "train", "run.t"], []),
        (["triax", "completion", "z"], ["zsh"]),
        (["triax", "nonsense", "--he"], ["--help"]),
    ],
)  # fmt: skip
def test_bash_completes(words: list[str], found: list[str], scripts: Path) -> None:
    assert completed(scripts, *words) == found


def test_bash_knows_every_command(scripts: Path) -> None:
    assert completed(scripts, "triax", "") == list(COMMANDS)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_others_read_their_scripts(shell: str, scripts: Path) -> None:
    text = (scripts / shell).read_text()
    assert all(name in text for name in (*COMMANDS, "tokens-per-shard"))
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", str(scripts / shell)], check=True, timeout=60)
