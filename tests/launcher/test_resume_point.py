"""What a run goes on with: its data and its tokenizer, told by their contents."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from jobs import read_events, train

from triax.checkpoint.folders import list_checkpoints
from triax.common.errors import UserError
from triax.data.config import DataConfig, SourceConfig
from triax.data.prepare.tokenizer import tokenizer_fingerprint
from triax.data.read.identity import Identity
from triax.data.read.plan import whole_run
from triax.data.read.shards import ShardWriter
from triax.launcher.cluster.preflight import Facts
from triax.launcher.config.loading import load_config
from triax.launcher.job import data as run_data
from triax.launcher.job.job import Job
from triax.launcher.job.resume import ResumePoint, refuse_other_tokenizer


def identity(path: str, *shards: str) -> Identity:
    return Identity(path, 100, shards)


def record_at(cursor: int, **more: Any) -> dict[str, Any]:
    resume_point = ResumePoint.new([identity("a/train", "1", "2")], whole_run(1.0))
    blend = resume_point.blend.to_json()
    return {"step": cursor // 8, "tokens": cursor * 32, "cursor": cursor, **blend, **more}


@pytest.mark.parametrize(
    ("given", "is_new"),
    [
        (identity("a/train", "1", "2"), False),
        (identity("moved/train", "1", "2"), False),
        (identity("a/train", "3"), True),
        (identity("b/train", "3"), True),
    ],
)
def test_the_guard_is_told_of_other_data_and_of_nothing_else(given: Identity, is_new: bool) -> None:
    resume_point = ResumePoint.of(record_at(96), [given], whole_run(1.0))
    assert resume_point.has_new_blend == is_new
    again = ResumePoint.of(resume_point.record_of(resume_point.state), [given], whole_run(1.0))
    assert not again.has_new_blend
    assert again.blend.phases == resume_point.blend.phases


def tokenizer(folder: Path, text: str) -> str:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(text)
    return str(folder)


def data(path: str | None) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path="a"),), seq_len=8, tokenizer=path)


def test_a_tokenizer_is_compared_by_its_contents(tmp_path: Path) -> None:
    was = tokenizer(tmp_path / "tokenizer", "one")
    record = record_at(8, tokenizer=tokenizer_fingerprint(was), config={"data": {"tokenizer": was}})
    refuse_other_tokenizer(record, data(was))
    refuse_other_tokenizer(record, data(None))
    moved = shutil.move(was, tmp_path / "moved")
    refuse_other_tokenizer(record, data(str(moved)))
    tokenizer(tmp_path / "tokenizer", "two")
    with pytest.raises(UserError, match="isn't the tokenizer that this run began with"):
        refuse_other_tokenizer(record, data(was))


def test_what_an_earlier_version_s_path_holds_counts(tmp_path: Path) -> None:
    was, other = tokenizer(tmp_path / "was", "one"), tokenizer(tmp_path / "other", "two")
    record = record_at(8, config={"data": {"tokenizer": was}})
    copy = tokenizer(tmp_path / "copy", "one")
    refuse_other_tokenizer(record, data(copy))
    with pytest.raises(UserError, match=r"its tokenizer\.json has other contents"):
        refuse_other_tokenizer(record, data(other))
    shutil.rmtree(was)
    refuse_other_tokenizer(record, data(other))  # nothing is left to compare with


def test_a_run_goes_on_with_its_source_moved_and_another_added(job: Path) -> None:
    """On two processes, of which each finds out for itself."""
    first = train(job, "--budget.tokens=3072", num_processes=2)
    assert first.code == 0, first.text
    (job / "web").mkdir()
    (job / "code").mkdir()
    for suffix in (".bin", ".idx"):
        shutil.move(job / f"data/train-00000{suffix}", job / f"web/train-00000{suffix}")
    with ShardWriter(job / "code/train", np.dtype("<u2")) as writer:
        writer.add_document(np.random.default_rng(0).integers(0, 300, 9000))
    shutil.move(job / "tokenizer", job / "tok")
    sources = '--data.sources=[{"path": "web/train"}, {"path": "code/train"}]'
    ended = train(job, sources, "--data.tokenizer=tok", num_processes=2)
    assert ended.code == 0, ended.text
    for line in (
        "data     web/train: the contents of data/train, goes on as that",
        "data     code/train: new to this run",
        "data     a new phase of the blend begins at sample 96",
        "data     web/train can't be verified: no data.json has its checksums",
    ):
        assert ended.out.count(line) == 1, line
    assert [event["step"] for event in read_events(job / "runs/job", "start")] == [0, 12]
    newest = list_checkpoints(job / "runs/job/checkpoints")[-1].manifest
    assert newest is not None
    [(key, _)], blend = (tuple(phase["weights"].items()) for phase in newest.record["phases"])
    assert blend[0][0] == key and len(blend) == 2
    assert newest.record["sources"][key]["path"] == "web/train"
    # As it is now, it is what the run knows.
    more = train(job, sources, "--data.tokenizer=tok", "--budget.tokens=7680", num_processes=2)
    assert more.code == 0, more.text
    assert "data     all sources are as before" in more.out


def write_validation(job: Path, offset: int) -> None:
    for old in (job / "data").glob("validation*"):
        old.unlink()
    with ShardWriter(job / "data/validation-00000", np.dtype("<u2")) as writer:
        writer.add_document((np.arange(600) * 7 + offset) % 300)


def test_validation_data_swapped_at_its_path_is_noticed(job: Path) -> None:
    stopped = train(job, "--budget.tokens=1024")
    assert stopped.code == 0, stopped.text
    again = train(job, "--budget.tokens=1536")
    assert "validat" in again.out and "can't be compared" not in again.out
    write_validation(job, 0)
    swapped = train(job, "--budget.tokens=2048", "--data.verify=never")
    assert swapped.code == 0, swapped.text
    assert "data/validation holds other text than the run has validated on" in swapped.out


def test_ranks_must_validate_on_the_same_data(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal training data, and another validation set: a rank's facts are others."""
    monkeypatch.chdir(job)
    found: list[Facts] = []
    monkeypatch.setattr(run_data, "refuse_differences", lambda facts, *_: found.append(facts))
    alone = SimpleNamespace(config=load_config("run.toml"), processes=None, together=lambda f: f())
    for offset in (0, 0, 1):
        write_validation(job, offset)
        run_data._open(cast(Job, alone))
    assert found[0] == found[1] != found[2]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {
        "the data data/validation"
    }
