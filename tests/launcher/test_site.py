"""The documentation: its commands run, its links lead somewhere, its site builds."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import Ended, make_job, train
from pages import DOCS, PAGES, ROOT, Command, commands

from triax.launcher.cli import main, parser_of
from triax.launcher.config.overrides import parse_arguments

TINY = (
    "--model.num_layers=1", "--model.hidden_size=32", "--model.num_heads=2",
    "--model.num_kv_heads=1", "--model.head_dim=16", "--model.ffn_hidden_size=32",
    "--data.seq_len=32", "--budget.tokens=512", "--batch.global_batch_size=4",
    "--batch.micro_batch_size=4", "--schedule.warmup=1 steps", "--eval.batches=1",
    "--metrics.tensorboard=false",
)  # fmt: skip
"""For a page's `triax train`: the same with a model of nothing, for a second."""
GUIDES = sorted(str(page.relative_to(ROOT)) for page in (DOCS / "guide").glob("*.md"))
NOT_RUN = {
    "triax train examples/quickstart.toml": ".ci/run begins it in a fresh clone",
    "triax rehearse": "tests/launcher/test_rehearse_command.py takes such steps",
    "triax data clean": "tests/data/test_clean.py runs the recipe on texts of its own",
}
"""Of the guides, and why; or who runs it."""
ELSEWHERE = {
    "README.md": "tests/launcher/test_job.py",
    "docs/checkpoints.md": "tests/launcher/test_checkpoint_command.py",
    "docs/cleaning.md": "tests/data/test_clean.py",
    "docs/context.md": "tests/parallel/test_context.py",
    "docs/data.md": "tests/launcher/test_data_commands.py",
    "docs/deepspeed.md": "tests/launcher/test_deepspeed_jobs.py",
    "docs/evaluation.md": "tests/launcher/test_inference.py",
    "docs/experts.md": "tests/launcher/test_initial_weights.py",
    "docs/export.md": "tests/launcher/test_checkpoint_command.py",
    "docs/finetuning.md": "tests/launcher/test_fine_tuning.py",
    "docs/from-scratch.md": "tests/launcher/test_recipes.py",
    "docs/inference.md": "tests/launcher/test_generate_command.py",
    "docs/launching.md": "tests/launcher/test_submit.py",
    "docs/parallelism.md": "tests/launcher/test_parallel_checks.py",
    "docs/parity.md": "tests/launcher/test_train.py",
    "docs/performance.md": "tests/launcher/test_bench.py",
    "docs/planning.md": "tests/launcher/test_plan.py",
    "docs/precision.md": "tests/launcher/test_precision.py",
    "docs/profiling.md": "tests/training/test_profiling.py",
    "docs/rehearsal.md": "tests/launcher/test_rehearse_command.py",
    "docs/report.md": "tests/launcher/test_report.py",
    "docs/scale.md": "tests/launcher/test_rehearse_command.py",
    "docs/stability.md": "tests/training/test_recovery.py",
    "examples/README.md": "tests/launcher/test_init.py",
}
"""Of the other pages: the tests that run their commands, with data, sizes or machines of theirs."""


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_a_command_is_one_that_triax_takes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, parser = parser_of(command.words[1])
    try:
        parse_arguments(parser, command.words[2:])
    except SystemExit:
        pytest.fail(f"{command.page}: {command}: {capsys.readouterr().err}")


def test_every_page_s_commands_are_run_somewhere() -> None:
    pages = {command.page for command in all_commands()} - set(GUIDES) - {"docs/index.md"}
    untold = pages - ELSEWHERE.keys()
    assert not untold, f"who runs the commands of {sorted(untold)}? See ELSEWHERE"
    assert not [path for path in ELSEWHERE.values() if not (ROOT / path).is_file()]
    used = {
        reason
        for reason in NOT_RUN
        if any(str(each).startswith(reason) for each in all_commands() if each.page in GUIDES)
    }
    assert used == NOT_RUN.keys()


@pytest.fixture(scope="module")
def place(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guides take for granted: texts, a tokenizer, a run, a model of transformers."""
    folder = make_job(corpus, tmp_path_factory.mktemp("guides"))
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "texts").mkdir()
    shutil.copy(corpus / "corpus.jsonl", folder / "texts" / "corpus.jsonl")
    chat = '{"prompt": "the cat", "completion": "and the dog"}\n'
    (folder / "chats.jsonl").write_text(chat * 40)
    ended = train(folder, "--run.name=quickstart", "--budget.tokens=1024", *TINY[-1:])
    assert ended.code == 0, ended.text
    (folder / "corpora/quickstart").mkdir(parents=True)
    for path in (folder / "data").glob("validation*"):
        shutil.copy(path, folder / "corpora/quickstart" / path.name)
    shutil.copytree(folder / "tokenizer", folder / "tok")
    export = ["checkpoint", "export", str(folder / "runs/quickstart"), "--output"]
    assert main([*export, str(folder / "hf-model")]) == 0
    return folder


def run(folder: Path, command: Command) -> Ended:
    """As typed, in the folder; a `train` smaller."""
    name, *arguments = command.words[1:]
    if name == "train":
        return train(folder, *TINY, config=arguments[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Ended(main([name, *arguments]), "", "")


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_s_commands_run_in_their_order(
    page: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "corpora").unlink()
    shutil.copytree(place / "corpora", tmp_path / "corpora")
    if "your-data" not in page:
        made = ["--tokenizer", str(place / "tok"), "--validation-fraction", "0.2", "--workers", "1"]
        texts, output = str(place / "texts"), str(tmp_path / "corpora/mine")
        assert main(["data", "prepare", texts, *made, "--output", output]) == 0
    else:
        (tmp_path / "tok").unlink()
    for command in commands(ROOT / page):
        if any(str(command).startswith(name) for name in NOT_RUN):
            continue
        if "data prepare" in str(command):
            shutil.rmtree(tmp_path / "corpora/mine", ignore_errors=True)
        ended = run(tmp_path, command)
        assert ended.code == 0, f"{command}\n{ended.text}{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    generated = {DOCS / "reference" / name for name in ("config.md", "cli.md", "python.md")}
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link and not link.startswith("mailto:"):
            target = (page.parent / link).resolve()
            assert target.exists() or target in generated, f"{page}: {link}"


def test_the_nav_has_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def listed(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        parts = part.values() if isinstance(part, dict) else part
        return [page for each in parts for page in listed(each)]

    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    generated = ["reference/config.md", "reference/cli.md", "reference/python.md"]
    assert sorted(listed(nav)) == sorted([*pages, *generated])


def test_error_texts_are_triax_s_own() -> None:
    page = (DOCS / "guide/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page[page.index("## By error text") :], re.M)
    folders = ("launcher", "training", "data", "checkpoint", "parallel", "inference")
    source = "\n".join(
        path.read_text(encoding="utf-8") for name in folders for path in (ROOT / name).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    assert len(quoted) > 10
    assert not [text for text in quoted if text not in joined]


@pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason='the "docs" extra is not installed'
)
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for name in ("index.html", "reference/config/index.html", "reference/cli/index.html"):
        assert (tmp_path / name).is_file()
    assert "optimizer" in (tmp_path / "reference/config/index.html").read_text()
    assert not re.findall(
        r'(?:src|href)="https?://(?:fonts|unpkg|cdn)', (tmp_path / "index.html").read_text()
    )
