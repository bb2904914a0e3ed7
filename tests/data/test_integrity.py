"""Checksums of shards: written with them, compared at the start, beside the steps, or by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import xxhash

from triax.common.errors import ExitCode, UserError
from triax.data.config import DataConfig, SourceConfig
from triax.data.prepare.corpus import prepare
from triax.data.prepare.tokenizer import train_tokenizer
from triax.data.read.integrity import KnownFile, Verification, files_of, known_files, verify
from triax.data.read.loader import Loader
from triax.data.read.sampler import Phase, Sampler
from triax.data.read.shards import ShardWriter
from triax.data.read.source import Source
from triax.data.record import load_prepared
from triax.launcher.cli import main
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.data import _verify
from triax.launcher.job.job import Job
from triax.parallel import agreement
from triax.training.config import EvalConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"text {n} " * 40}) + "\n" for n in range(60)))
    train_tokenizer([str(text)], 300, folder / "tokenizer")
    prepare(
        [str(text)], folder / "tokenizer", folder, num_workers=1, validation_fraction=0.2,
        tokens_per_shard=1500,
    )  # fmt: skip
    return folder


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy of the shards and their record."""
    for path in made.iterdir():
        if path.suffix in (".bin", ".idx", ".json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_every_file_of_every_shard_has_its_checksum(made: Path) -> None:
    record = load_prepared(made)
    assert record is not None and record.train.shards > 1
    files = [path for path in made.iterdir() if path.suffix in (".bin", ".idx")]
    assert record.checksums == {
        path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in files
    }
    found = files_of([str(made / "train"), str(made / "validation")])
    assert {file.path for file in found.files} == set(files)
    assert found.without == []
    verify(found.files)


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.idx"])
def test_any_flipped_bit_is_found_and_its_file_named(data: Path, name: str) -> None:
    record = load_prepared(data)
    assert record is not None
    file, size = KnownFile(data / name, record.checksums[name]), (data / name).stat().st_size
    for position in np.random.default_rng(0).integers(0, size, 20).tolist():
        flip(data / name, position)
        with pytest.raises(UserError, match=f"{name}: damaged: its bytes are not those"):
            verify([file])
        flip(data / name, position)
    verify([file])


def test_a_preparation_that_was_interrupted_has_all_checksums(made: Path, tmp_path: Path) -> None:
    def stop(num_documents: int, _num_tokens: int) -> None:
        if num_documents == 40:
            raise KeyboardInterrupt

    def again(progress: Callable[[int, int], None] = lambda *_: None) -> None:
        prepare(
            [str(made / "text.jsonl")], made / "tokenizer", tmp_path / "out", num_workers=1,
            validation_fraction=0.2, tokens_per_shard=1500, progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        again(stop)
    assert len(list((tmp_path / "out").glob("*.idx"))) > 0
    again()
    record, straight = load_prepared(tmp_path / "out"), load_prepared(made)
    assert record is not None and straight is not None
    assert record.checksums == straight.checksums


def test_shards_without_checksums_are_named(data: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "megatron", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(100))
    found = files_of([str(tmp_path / "megatron"), str(data / "train")])
    assert found.without == [str(tmp_path / "megatron")]
    record = json.loads((data / "data.json").read_text())
    del record["checksums"]  # as earlier versions wrote it
    (data / "data.json").write_text(json.dumps(record))
    assert files_of([str(data / "train")]).files == []


def test_damage_found_beside_the_steps_ends_the_reading(data: Path) -> None:
    flip(data / "train-00001.bin", 100)
    source = Source.open(data / "train", 16, 300)
    with Verification(known_files(str(data / "train"))[0]) as verification:
        loader = Loader(
            {"train": source},
            Sampler(0, [Phase(0, (("train", 1.0),))], {"train": source.num_windows}),
            global_batch_size=2, micro_batch_size=2, dp_rank=0, dp_size=1, mask_documents=True,
            before_batch=verification.check,
        )  # fmt: skip
        verification.wait()
        with pytest.raises(UserError, match=r"train-00001\.bin: damaged"):
            list(loader.iterate(0, 10))
        # Ranks read a single batch together, to find what isn't finite: none may stay away.
        assert len(loader.batch_at(0)) == 1


def test_ranks_keep_their_lists_of_files_to_themselves(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []

    def reduce_objects(value: object, _merge: object, _group: object) -> object:
        sent.append(value)
        return value

    monkeypatch.setattr(agreement, "reduce_objects", reduce_objects)
    config = DataConfig(sources=(SourceConfig(path=str(made / "train")),), seq_len=16)
    here = Environment(0, 0, 1, 1, 0, "here", "single")
    processes = Processes(here, torch.device("cpu"), None, None)
    missing: Any = None
    job = Job(
        cast(RunConfig, SimpleNamespace(data=config, eval=EvalConfig())), processes, *[missing] * 7
    )
    found = _verify(job)
    assert sent == [None]
    assert len(found._files) == len(known_files(str(made / "train"))[0])


def test_verification_ends_when_the_run_does(made: Path) -> None:
    files = known_files(str(made / "train"))[0] * 100_000
    with Verification(files) as verification:
        pass
    verification.wait()
    verification.check()


def test_a_file_that_is_no_file_does_not_hang(data: Path) -> None:
    files = known_files(str(data / "train"))[0]
    files[0].path.unlink()
    os.mkfifo(files[0].path)
    with pytest.raises(UserError, match="not a regular file"):
        verify(files)
    files[0].path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: cannot be read"):
        verify(files)


def test_the_command_says_what_is_good_damaged_and_unknown(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefixes = [str(data / "train"), str(data / "validation")]
    assert main(["data", "verify", *prefixes]) == 0
    assert capsys.readouterr().out.count("files are as they were prepared") == 2
    flip(data / "train-00000.bin", 7)
    flip(data / "train-00001.bin", 7)
    assert main(["data", "verify", *prefixes]) == ExitCode.BAD_INPUT
    out = capsys.readouterr().out
    assert out.count("damaged: its bytes are not those") == 2
    assert "validation: 2 files" in out or "files are as they were prepared" in out
    (data / "data.json").unlink()
    assert main(["data", "verify", prefixes[0]]) == 0
    assert "can't be verified, no data.json beside them" in capsys.readouterr().out
    assert main(["data", "verify", str(data / "absent")]) == ExitCode.BAD_INPUT
