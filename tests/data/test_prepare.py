"""Preparation: what ends up in the shards, whatever the number of workers and interrupts."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.common.files import exclusive
from triax.data.prepare.corpus import prepare
from triax.data.prepare.findings import findings
from triax.data.prepare.split import TRAIN, VALIDATION, _hash, assign_splits, plan_split
from triax.data.prepare.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from triax.data.read.shards import Shard, find_shards
from triax.data.record import PreparedData, load_prepared, load_progress

TEXTS = [f"document {n} " + "words and more words " * (n % 7 * 5) for n in range(120)]
TEXTS[5] += f"text that spells {END_OF_TEXT} is no end"
TOKENS_PER_SHARD = 1000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("corpus") / "x.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(file)


@pytest.fixture(scope="module")
def tokenizer(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer([corpus], 300, tmp_path_factory.mktemp("tokenizer")).parent


@pytest.fixture(scope="module")
def prepared(corpus: str, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Straight, with one worker."""
    folder = tmp_path_factory.mktemp("straight")
    run(corpus, tokenizer, folder, num_workers=1)
    return folder


class Options(TypedDict, total=False):
    num_workers: int
    validation_fraction: float
    tokens_per_shard: int
    progress: Callable[[int, int], None]


def run(corpus: str, tokenizer: Path, folder: Path, **changes: Unpack[Options]) -> PreparedData:
    options: Options = {
        "num_workers": 1,
        "validation_fraction": 0.1,
        "tokens_per_shard": TOKENS_PER_SHARD,
        **changes,
    }
    return prepare([corpus], tokenizer, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def documents(prefix: Path) -> Iterator[list[int]]:
    for shard in map(Shard.open, find_shards(prefix)):
        for number in range(shard.num_documents):
            start = shard.document_start(number)
            yield shard.read(start, shard.document_start(number + 1) - start).tolist()


def test_every_document_is_there_once_in_order_and_ended(prepared: Path, tokenizer: Path) -> None:
    decoder = load_tokenizer(tokenizer)
    splits: dict[str, list[str]] = {}
    for split in (TRAIN, VALIDATION):
        splits[split] = []
        for tokens in documents(prepared / split):
            assert tokens.count(0) == 1 and tokens[-1] == 0
            splits[split].append(decoder.decode(tokens[:-1], skip_special_tokens=False))
        order = [TEXTS.index(text) for text in splits[split]]
        assert order == sorted(order)
    assert sorted(splits[TRAIN] + splits[VALIDATION]) == sorted(TEXTS)
    assert 4 <= len(splits[VALIDATION]) <= 24


def test_record(prepared: Path, tokenizer: Path) -> None:
    data = load_prepared(prepared)
    assert data is not None
    assert data.settings.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)
    assert (data.vocab_size, data.end_of_text_id, data.dtype) == (300, 0, "uint16")
    for split, counts in ((TRAIN, data.train), (VALIDATION, data.validation)):
        shards = [Shard.open(prefix) for prefix in find_shards(prepared / split)]
        assert counts.shards == len(shards) > 1
        assert counts.tokens == sum(shard.num_tokens for shard in shards)
        assert counts.documents == sum(shard.num_documents for shard in shards)
    assert data.train.documents + data.validation.documents == len(TEXTS)
    assert load_progress(prepared) is None


def test_workers_change_no_byte(
    corpus: str, tokenizer: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triax.data.prepare.encode._BATCH_CHARACTERS", 500)
    run(corpus, tokenizer, tmp_path, num_workers=3)
    assert contents(tmp_path) == contents(prepared)


KILLED = """
import multiprocessing, os, pathlib, signal, sys
from triax.data.prepare.findings import findings
from triax.data.prepare.corpus import prepare

corpus, tokenizer, folder, renames = sys.argv[1:]
renames_left = int(renames)
replace = pathlib.Path.replace

def replace_or_die(source, target):
    global renames_left
    renames_left -= 1
    if renames_left < 0:
        pids = [child.pid for child in multiprocessing.active_children()]
        pathlib.Path("pids").write_text(" ".join(map(str, pids)))
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)

if __name__ == "__main__":
    pathlib.Path.replace = replace_or_die
    prepare([corpus], pathlib.Path(tokenizer), pathlib.Path(folder), num_workers=1,
            validation_fraction=0.1, tokens_per_shard=1000)
"""


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    corpus: str, tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    """SIGKILL before the first, second, ... rename of a call: each is a step of a commit."""
    script, folder = tmp_path / "killed.py", tmp_path / "data"
    script.write_text(KILLED)
    seen = []
    for renames in (0, 2, 4, 8, 11):
        command = [sys.executable, str(script), corpus, str(tokenizer), str(folder), str(renames)]
        done = subprocess.run(command, cwd=tmp_path, check=False)
        assert done.returncode == -signal.SIGKILL
        assert load_prepared(folder) is None
        progress = load_progress(folder)
        seen.append(0 if progress is None else progress.documents)
        wait_until_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])
    assert seen == sorted(seen) and 0 < seen[-1] < len(TEXTS)
    begun_with = []
    run(corpus, tokenizer, folder, progress=lambda n, _: begun_with.append(n))
    assert begun_with[0] == seen[-1] + 1
    assert contents(folder) == contents(prepared)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def test_finished_preparation_returns_at_once(corpus: str, tokenizer: Path, prepared: Path) -> None:
    calls = []
    before = contents(prepared)
    data = run(corpus, tokenizer, prepared, progress=lambda *call: calls.append(call))
    assert data == load_prepared(prepared)
    assert calls == [] and contents(prepared) == before


def test_other_settings_are_refused(
    corpus: str, tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    before = contents(prepared)
    with pytest.raises(UserError, match=r"validation_fraction = 0\.1, not 0\.2"):
        run(corpus, tokenizer, prepared, validation_fraction=0.2)
    other = train_tokenizer([corpus], 301, tmp_path)
    with pytest.raises(UserError, match="tokenizer changed since its data was prepared"):
        run(corpus, other, prepared)
    assert contents(prepared) == before


def test_shards_of_unknown_origin_are_not_overwritten(
    corpus: str, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.idx").write_text("mine")
    with pytest.raises(UserError, match=r"holds train\.idx"):
        run(corpus, tokenizer, tmp_path)
    assert (tmp_path / "train.idx").read_text() == "mine"


def test_dead_worker_is_an_error_and_the_next_call_goes_on(
    corpus: str, tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    def kill_workers(num_documents: int, _num_tokens: int) -> None:
        if num_documents == 60:
            for child in multiprocessing.active_children():
                child.kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triax.data.prepare.encode._BATCH_CHARACTERS", 1)
        with pytest.raises(UserError, match="tokenizing process died"):
            run(corpus, tokenizer, tmp_path, progress=kill_workers)
    assert not list(tmp_path.glob("*.partial"))
    run(corpus, tokenizer, tmp_path)
    assert contents(tmp_path) == contents(prepared)


def test_interrupt_in_the_middle_ends_the_workers(
    corpus: str, tokenizer: Path, tmp_path: Path
) -> None:
    def interrupt(num_documents: int, _num_tokens: int) -> None:
        if num_documents == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(corpus, tokenizer, tmp_path, progress=interrupt)
    assert caught  # the traceback is alive, so no garbage collection has ended the workers
    assert multiprocessing.active_children() == []
    assert not list(tmp_path.glob("*.partial"))
    progress = load_progress(tmp_path)
    assert progress is not None and 0 < progress.documents < 60


def test_too_little_text(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="no documents"):
        run(str(tmp_path / "empty.txt"), tokenizer, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": 0},
        {"validation_fraction": 1.0},
        {"validation_fraction": float("nan")},
        {"tokens_per_shard": 0},
    ],
)
def test_bad_arguments(corpus: str, tokenizer: Path, tmp_path: Path, changes: Options) -> None:
    with pytest.raises(UserError, match=next(iter(changes)).removeprefix("num_")):
        run(corpus, tokenizer, tmp_path, **changes)


def test_bad_line_in_the_middle_is_a_user_error(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n{')
    with pytest.raises(UserError, match="line 3"):
        run(str(file), tokenizer, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.idx"))


def test_one_preparation_at_a_time(corpus: str, tokenizer: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path, "taken"), pytest.raises(UserError, match="another process is writing"):
        run(corpus, tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["data.json", "progress.json"])
def test_damaged_record(corpus: str, tokenizer: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"settings": 3')
    with pytest.raises(UserError, match=name):
        run(corpus, tokenizer, tmp_path)


def test_inputs_that_shrank_below_what_is_done(
    corpus: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(num_documents: int, _num_tokens: int) -> None:
        if num_documents == 60:
            raise KeyboardInterrupt

    monkeypatch.setattr("triax.data.prepare.corpus.inputs_fingerprint", lambda _: "a hub's dataset")
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tokenizer, tmp_path, progress=stop)
    monkeypatch.setattr("triax.data.prepare.corpus.iter_documents", lambda *_: iter(["one"]))
    with pytest.raises(UserError, match="1 documents, but"):
        run(corpus, tokenizer, tmp_path)


def assigned(num_documents: int, fraction: float, num_done: int = 0) -> list[dict[str, list[int]]]:
    """Splits of documents [1, 2, 3, 0] * n, without the first `num_done`."""
    everything = [np.array([n + 1, 2, 3, 0]) for n in range(num_documents)]
    plan = plan_split((len(tokens) - 1 for tokens in everything), fraction)
    rest = assign_splits(iter(everything[num_done:]), plan, num_done)
    return [{split: tokens.tolist() for split, tokens in pieces.items()} for pieces in rest]


@settings(deadline=None)
@given(num_documents=st.integers(2, 40), fraction=st.floats(0.001, 0.999), data=st.data())
def test_both_splits_have_a_document_and_resuming_changes_none(
    num_documents: int, fraction: float, data: st.DataObject
) -> None:
    straight = assigned(num_documents, fraction)
    assert len(straight) == num_documents
    assert {split for pieces in straight for split in pieces} == {TRAIN, VALIDATION}
    num_done = data.draw(st.integers(0, num_documents - 1))
    assert assigned(num_documents, fraction, num_done) == straight[num_done:]


def test_share_of_validation() -> None:
    pieces = assigned(4000, 0.1)
    assert 320 < sum(VALIDATION in piece for piece in pieces) < 480
    assert all(len(piece) == 1 for piece in pieces)
    assert all(TRAIN in piece for piece in assigned(50, 0.0))


def test_many_documents_go_by_their_numbers_alone() -> None:
    """Of a second corpus with as many documents the same ones, as long as they may be."""
    lengths = np.random.default_rng(0).integers(1, 10**6, 1000).tolist()
    assert plan_split(iter(lengths), 0.01) == plan_split(iter([1] * 5000), 0.01)
    assert plan_split(iter(lengths), 0.01).cut is None
    assert plan_split(iter([1] * 100_000), 5e-324).cut is None
    assert plan_split(iter([1] * 9), 5e-324).cut is not None


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 10**7), min_size=1, max_size=60),
    fraction=st.floats(0.02, 0.8),
)
def test_few_documents_give_validation_its_share_of_the_text(
    lengths: list[int], fraction: float
) -> None:
    plan = plan_split(iter(lengths), fraction)
    if len(lengths) >= 10 / min(fraction, 1 - fraction):
        assert plan.cut is None
        return
    whole = [
        length
        for number, length in enumerate(lengths)
        if number != plan.cut and _hash(number) < plan.below
    ]
    assert plan.cut is not None
    share = (sum(whole) + plan.cut_share * lengths[plan.cut]) / sum(lengths)
    assert share == pytest.approx(fraction)


def test_single_document_is_cut() -> None:
    assert assigned(1, 0.34) == [{TRAIN: [1, 0], VALIDATION: [2, 3, 0]}]
    assert assigned(1, 0.0) == [{TRAIN: [1, 2, 3, 0]}]
    with pytest.raises(UserError, match="too few documents"):
        list(assign_splits(iter([np.array([1, 0])]), plan_split(iter([1]), 0.1)))


def test_both_parts_of_a_cut_document_begin_as_documents_do() -> None:
    plan = plan_split(iter([4]), 0.5)
    [pieces] = assign_splits(iter([np.array([9, 1, 2, 3, 4, 0])]), plan, num_begin=1)
    assert pieces[TRAIN].tolist() == [9, 1, 2, 0]
    assert pieces[VALIDATION].tolist() == [9, 3, 4, 0]


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_small_and_a_large_document_neither_is_all_of_a_split(
    tokenizer: Path, tmp_path: Path, order: int
) -> None:
    texts = ["few words", " ".join(map(str, range(5000)))][::order]
    file = tmp_path / "two.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = run(str(file), tokenizer, tmp_path / "out", validation_fraction=0.02)
    total = data.train.tokens + data.validation.tokens
    assert 0.015 < data.validation.tokens / total < 0.03
    assert data.split is not None and data.split.cut is not None
    assert texts[data.split.cut] != "few words"
    assert load_prepared(tmp_path / "out") == data and findings(data) == []


def test_a_preparation_that_an_earlier_version_began_goes_on_by_its_rule(
    corpus: str, tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    def stop(num_documents: int, _num_tokens: int) -> None:
        if num_documents == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tokenizer, tmp_path, progress=stop)
    record = json.loads((tmp_path / "progress.json").read_text())
    del record["split"]
    (tmp_path / "progress.json").write_text(json.dumps(record))
    run(corpus, tokenizer, tmp_path)
    data = load_prepared(prepared)
    assert data is not None
    for name in data.checksums:
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()


def test_one_that_an_earlier_version_finished_is_taken_as_it_is(
    corpus: str, tokenizer: Path, prepared: Path
) -> None:
    record = json.loads((prepared / "data.json").read_text())
    before = dict(record)
    del record["split"], record["num_shared"]
    (prepared / "data.json").write_text(json.dumps(record))
    assert run(corpus, tokenizer, prepared).split is None
    (prepared / "data.json").write_text(json.dumps(before, indent=2))


def test_a_share_far_from_the_fraction_is_found(prepared: Path) -> None:
    data = load_prepared(prepared)
    assert data is not None and findings(data) == []
    swapped = data.model_copy(update={"train": data.validation, "validation": data.train})
    [finding] = findings(swapped)
    assert re.match(r"validation has 8\d\.\d+% .*10\.00% was asked for", finding)


def test_validation_documents_that_are_trained_on_are_counted(
    tokenizer: Path, tmp_path: Path
) -> None:
    """Many documents: which of them are equal is known, and where they go, too."""
    numbers = range(200)
    below = plan_split(iter([1] * 200), 0.1).below
    held = [number for number in numbers if _hash(number) < below]
    trained = [number for number in numbers if number not in held]
    texts = [f"document {number}" for number in numbers]
    for source, copy in ((trained[0], held[0]), (trained[-1], held[1]), (held[1], held[2])):
        texts[copy] = texts[source]
    texts[held[4]] = texts[held[3]]  # equal to one another alone
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = run(str(file), tokenizer, tmp_path / "out")
    assert data.num_shared == 3
    [finding] = findings(data)
    assert f"3 of {len(held)} validation documents stand in the training split too" in finding
    found = load_prepared(tmp_path / "out")
    assert found is not None and found.num_shared == 3
