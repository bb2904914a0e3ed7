"""A run's folder is whole: started, moved, copied and read from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jobs import curve, make_job, train

from triax.checkpoint.run_folder import keep_tokenizer, kept_tokenizer
from triax.common.errors import ExitCode
from triax.launcher.checks.sections import load_checked
from triax.launcher.cli import main
from triax.launcher.config.loading import load_config


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps in `runs/job`."""
    folder = make_job(corpus, tmp_path_factory.mktemp("trained"))
    ended = train(folder, "--budget.tokens=1024")
    assert ended.code == 0, ended.text
    return folder


@pytest.fixture
def job_folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_a_run_goes_on_from_any_folder(job_folder: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    for folder, config, steps in (
        (away, "../copy/runs/job/config.toml", 5),
        (job_folder / "runs", "job/config.toml", 6),
        (job_folder / "runs/job", "config.toml", 7),
    ):
        ended = train(folder, f"--budget.tokens={256 * steps}", config=config)
        assert ended.code == 0, ended.text
        assert len(curve(job_folder / "runs/job")) == steps
    assert not (away / "runs").exists() and not (job_folder / "runs/runs").exists()


def test_a_moved_run_goes_on_with_its_own_tokenizer(
    job_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (job_folder / "runs/job").rename(away / "moved")
    shutil.rmtree(job_folder / "tokenizer")
    data = json.dumps([{"path": str(job_folder / "data/train")}])
    arguments = (
        "--budget.tokens=1280",
        f"--data.sources={data}",
        f"--data.validation={job_folder}/data/validation",
    )
    ended = train(away, *arguments, config="moved/config.toml")
    assert ended.code == 0, ended.text
    assert "changed since the last checkpoint: run.dir: " in ended.out
    assert "going on after step 4" in ended.out
    assert len(curve(away / "moved")) == 5
    assert [path.name for path in away.iterdir() if path.is_dir()] == ["moved"]
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "away/moved", "--max-tokens", "3"]) == ExitCode.DONE
    output = str(tmp_path / "hf")
    assert main(["checkpoint", "export", "away/moved", "--output", output]) == ExitCode.DONE
    kept = (away / "moved/tokenizer/tokenizer.json").read_bytes()
    assert Path(output, "tokenizer.json").read_bytes() == kept


def test_an_override_of_the_name_begins_a_run_beside_it(job_folder: Path) -> None:
    config = load_config(job_folder / "runs/job/config.toml", ["run.name=other"])
    assert config.run_dir == job_folder / "runs/other"
    copy = shutil.copyfile(job_folder / "runs/job/config.toml", job_folder / "copied.toml")
    assert load_config(copy).run.name == "job"


def test_a_run_of_an_earlier_version_goes_on_too(job_folder: Path) -> None:
    """Its config.toml has relative paths, and it kept no tokenizer."""
    shutil.rmtree(job_folder / "runs/job/tokenizer")
    text = (job_folder / "run.toml").read_text()
    (job_folder / "runs/job/config.toml").write_text(text)
    config = load_config(job_folder / "runs/job/config.toml")
    assert config.run_dir == job_folder / "runs/job"


def test_the_tokenizer_is_known_by_its_contents(job_folder: Path) -> None:
    shutil.move(job_folder / "tokenizer", job_folder / "renamed")
    renamed = "--data.tokenizer=./renamed"
    assert train(job_folder, "--budget.tokens=1280", renamed).code == 0
    file = job_folder / "renamed/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["another"] = 303
    file.write_text(json.dumps(content))
    shutil.rmtree(job_folder / "data")
    # Data that was prepared with it, so that only the run knows better.
    corpus = job_folder / "corpus.txt"
    corpus.write_text("the cat sat on the mat and ran. " * 2000)
    argv = ["data", "prepare", str(corpus), "--tokenizer", str(job_folder / "renamed")]
    argv += ["--output", str(job_folder / "data"), "--workers", "1"]
    assert main(argv) == ExitCode.DONE
    refused = train(job_folder, "--budget.tokens=1536", renamed, "--data.validation=null")
    assert refused.code == ExitCode.BAD_INPUT
    assert "renamed isn't the tokenizer that this run began with" in refused.error


def test_a_run_keeps_the_tokenizer_that_it_is_trained_with(tmp_path: Path) -> None:
    """A first start may have saved nothing, and the next one may read other data."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for number, name in enumerate(("first", "second", "third/tokenizer.json", "first")):
        folder = tmp_path / name.partition("/")[0]
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(f"{name} {number}")
        (folder / "tokenizer_config.json").write_text(name)
        for _ in range(2):
            keep_tokenizer(tmp_path / name, run_dir)
            kept = kept_tokenizer(run_dir)
            assert kept is not None
            assert (kept / "tokenizer.json").read_text() == f"{name} {number}"
            assert (kept / "tokenizer_config.json").read_text() == name
    keep_tokenizer(kept, run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["tokenizer"]


def test_what_rank_0_cannot_write_ends_all_ranks_in_words(corpus: Path, tmp_path: Path) -> None:
    folder = make_job(corpus, tmp_path)
    (folder / "runs/job/config.toml").mkdir(parents=True)
    ended = train(folder, num_processes=2)
    assert ended.code == ExitCode.BAD_INPUT
    assert "config.toml: cannot be written" in ended.error
    assert "Traceback" not in ended.text
    own = [
        line
        for line in (folder / "runs/job/logs/node-0.log").read_text().splitlines()
        if line.startswith("rank 1 | ")
    ]
    assert "the job ends with an error" in "\n".join(own)
    assert any("UserError: rank 0: " in line for line in own)


def test_one_rule_for_every_path(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(job_folder))
    monkeypatch.setenv("SCRATCH", str(job_folder / "runs"))
    config = load_checked(
        job_folder / "run.toml",
        [
            "run.dir=$SCRATCH/x", "data.tokenizer=~/tokenizer", "data.validation=~/data/validation",
            'data.sources=[{"path": "${HOME}/data/train"}]',
            "checkpoint.init_from=$SCRATCH/job", "checkpoint.init_from_other_settings=true",
        ],
    )  # fmt: skip
    assert config.run.dir == str(job_folder / "runs/x")
    assert config.data.tokenizer == str(job_folder / "tokenizer")
    assert config.data.sources[0].path == str(job_folder / "data/train")
    assert main(["checkpoint", "export", "$SCRATCH/job", "--output", "~/hf"]) == ExitCode.DONE
    assert (job_folder / "hf/config.json").is_file()
    assert main(["check", "~/run.toml", "--run.dir=$NOWHERE/x"]) == ExitCode.BAD_INPUT
    assert "the variable NOWHERE isn't set" in " ".join(capsys.readouterr().err.split())
