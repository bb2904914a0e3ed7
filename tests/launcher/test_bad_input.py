"""Input that can't be trained on: one clear message, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jobs import Ended, curve, finish, make_job, read_events, read_rows, start, train


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def replace_tokenizer(job: Path) -> None:
    path = job / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["another"] = 300
    path.write_text(json.dumps(content))


def empty_dataset(job: Path) -> None:
    for path in (job / "data").glob("train*"):
        path.unlink()


BEFORE_THE_START = {
    "mistyped key": (None, ["--optimizer.lrr=1"], 1, "optimizer.lrr: unknown key; did you mean lr"),
    "wrong type": (None, ["--batch.micro_batch_size=two"], 1, "expected a whole number"),
    "missing bin": (lambda job: (job / "data/train-00000.bin").unlink(), [], 1, "cannot be read"),
    "missing idx": (lambda job: (job / "data/train-00000.idx").unlink(), [], 1, "no such dataset"),
    "idx promises more": (lambda job: cut(job / "data/train-00000.bin"), [], 1, "promises"),
    "truncated idx": (lambda job: cut(job / "data/train-00000.idx"), [], 1, "train-00000.idx"),
    "truncated validation": (
        lambda job: cut(job / "data/validation-00000.bin"), [], 1, "data.validation: ",
    ),
    "another tokenizer": (replace_tokenizer, ["--model.vocab_size=400"], 1, "tokenizer"),
    "vocabulary too small": (None, ["--model.vocab_size=299"], 1, "use at least 300"),
    "empty dataset": (empty_dataset, [], 1, "no such dataset"),
    "too little data": (None, ["--data.seq_len=30000"], 1, "too few tokens for one sample"),
    "batch does not divide": (None, ["--batch.micro_batch_size=3"], 1, "; use 6 or 9"),
    "batch of two processes": (None, ["--batch.micro_batch_size=8"], 2, "2 data-parallel proc"),
    "unknown stage": (None, ["--parallel.zero_stage=4"], 1, "expected 0, 1, 2 or 3, got 4"),
    "world does not fit": (None, ["--parallel.replicate=2"], 3, "processes, 3, is not a multiple"),
    "unwritable run directory": (
        lambda job: (job / "file").write_text(""), ["--run.dir=file/runs"], 1, "file is a file",
    ),
    "no such weights": (None, ["--checkpoint.init_from=nowhere"], 1, "no such checkpoint"),
    "no checkpoint": (None, ["--checkpoint.init_from=data"], 1, "no checkpoint here"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE_THE_START)
def test_a_run_that_cannot_be_is_refused(job: Path, name: str) -> None:
    prepare: Callable[[Path], object] | None
    prepare, overrides, num_processes, message = BEFORE_THE_START[name]
    if prepare is not None:
        prepare(job)
    refused(train(job, *overrides, num_processes=num_processes), message)
    assert not (job / "runs/job/metrics.jsonl").exists()


def refused(ended: Ended, message: str) -> None:
    assert ended.code == 2, ended.text
    assert message in " ".join(ended.error.split()), ended.error
    assert "triax: error: " in ended.error
    assert "Traceback" not in ended.text


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended."""
    folder = make_job(corpus, tmp_path_factory.mktemp("trained"))
    ended = train(folder)
    assert ended.code == 0, ended.text
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, in a folder of its own."""
    return Path(shutil.copytree(trained, tmp_path / "copy")) / "runs/job"


def everything(run: Path) -> dict[str, bytes]:
    """What must not be lost: figures, config and checkpoints."""
    paths = [run / "metrics.jsonl", run / "config.toml", *(run / "checkpoints").rglob("*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_changed_model_is_shown_and_refused(run: Path, num_processes: int) -> None:
    before = everything(run)
    changes = ("--model.num_layers=3", "--eval.batches=1")
    ended = train(run.parent.parent, *changes, num_processes=num_processes)
    refused(ended, "model.num_layers: 2 -> 3 (breaks the run)")
    # Between them stand the paths of the folder that this run is a copy of.
    model = ended.error.index("\n  model.num_layers: 2 -> 3   (breaks the run)\n")
    assert ended.error.index("\n  eval.batches: 2 -> 1\n") > model
    assert everything(run) == before
    assert json.loads((run / "exit.json").read_text())["code"] == 2


def test_weights_of_another_model_are_refused(run: Path) -> None:
    other = ("--run.name=other", "--model.ffn_hidden_size=32", "--checkpoint.init_from=runs/job")
    ended = train(run.parent.parent, *other)
    refused(ended, "another model: model.ffn_hidden_size: 64 there, 32 here. Take over its")


def test_a_second_job_in_the_same_run_is_refused(job: Path) -> None:
    def second_job() -> bool:
        if not read_rows(job / "runs/job"):
            return False
        seconds.append(train(job, num_processes=2))
        return True

    seconds: list[Ended] = []
    first = train(job, "--budget.tokens=51200", signal_when=(None, second_job))
    assert first.code == 0, first.text
    refused(seconds[0], "another job is training in runs/job")
    assert [step for step, *_ in curve(job / "runs/job")] == list(range(1, 201))


def damage(run: Path, step: int) -> None:
    path = run / f"checkpoints/step-{step:08d}/__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_taken(
    run: Path, num_processes: int
) -> None:
    folder, expected = run.parent.parent, curve(run)
    damage(run, 24)
    ended = train(folder, "--optimizer.eps=1e-8", num_processes=num_processes)
    assert ended.code == 0, ended.text
    assert "step-00000024 is bad, trying an earlier one" in ended.out
    assert "going on after step 20 from runs/job/checkpoints/step-00000020" in ended.out
    if num_processes == 1:
        assert curve(run) == expected
    assert read_events(run, "start")[-1]["step"] == 20


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_whose_checkpoints_are_all_damaged_never_begins_anew(
    run: Path, num_processes: int
) -> None:
    for step in (16, 20, 24):
        damage(run, step)
    before = everything(run)
    ended = train(run.parent.parent, "--budget.tokens=7680", num_processes=num_processes)
    refused(ended, "none of its 3 checkpoints is good")
    assert everything(run) == before


@pytest.mark.parametrize("num_processes", [1, 2])
def test_text_that_cannot_be_prepared(job: Path, num_processes: int) -> None:
    (job / "bad.jsonl").write_text('{"text": 5}\n')
    prepare = '--data.prepare={"inputs": ["bad.jsonl"], "output": "made", "vocab_size": 300}'
    places = ("--data.tokenizer=made/tokenizer", '--data.sources=[{"path": "made/train"}]')
    ended = train(
        job, prepare, *places, "--data.validation=made/validation", num_processes=num_processes
    )
    refused(ended, 'bad.jsonl, line 1: "text" holds int, expected a string')


def test_a_token_outside_the_vocabulary_in_one_rank_s_validation(job: Path) -> None:
    path = job / "data/validation-00000.bin"
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[9 * 32] = 60000
    tokens.tofile(path)
    refused(train(job, num_processes=2), "rank 1: data/validation-00000: token id 60000")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_token_outside_the_vocabulary_in_mid_run(job: Path, num_processes: int) -> None:
    path = job / "data/train-00000.bin"
    tokens = np.fromfile(path, dtype=np.uint16)
    good = tokens[9000]
    tokens[9000] = 60000
    tokens.tofile(path)
    overrides = ("--budget.tokens=24000", "--checkpoint.every=1000 steps", "--data.verify=never")
    ended = train(job, *overrides, num_processes=num_processes)
    refused(ended, "data/train-00000: token id 60000 at position 9,000 is not in [0, ")
    assert ended.error.count("token id") == 1
    assert json.loads((job / "runs/job/exit.json").read_text())["code"] == 2
    # What was trained until then is kept, and once the data is mended the run goes on.
    reached = len(read_rows(job / "runs/job"))
    tokens[9000] = good
    tokens.tofile(path)
    ended = train(job, *overrides, num_processes=num_processes)
    assert ended.code == 0, ended.text
    assert f"going on after step {reached} " in ended.out
    whole = train(job, *overrides, "--run.name=whole", num_processes=num_processes)
    assert whole.code == 0, whole.text
    assert curve(job / "runs/job") == curve(job / "runs/whole")


def flip(path: Path) -> None:
    """Another token, within the vocabulary, in the middle of a shard."""
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[len(tokens) // 2] ^= 1
    tokens.tofile(path)


@pytest.mark.parametrize("when", ["start", "background"])
def test_a_shard_that_is_not_as_it_was_prepared(job: Path, when: str) -> None:
    flip(job / "data/train-00000.bin")
    overrides = ("--budget.tokens=24000", f"--data.verify={when}")
    ended = train(job, *overrides, num_processes=2)
    refused(ended, "data/train-00000.bin: damaged: its bytes are not those that were prepared")
    assert json.loads((job / "runs/job/exit.json").read_text())["code"] == 2


def test_what_the_command_line_shows_of_it(job: Path) -> None:
    command = ("triax", "train", "run.toml", "--nproc-per-node", "2", "--batch.global_batch_size=7")
    ended = finish(start(job, *command))
    refused(ended, "run.toml: 1 problem command line: batch.global_batch_size: 7 is not a multiple")
    assert ended.out == ""
