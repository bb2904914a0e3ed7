"""Checks across sections, of the files and of the number of processes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from triax.data.config import PrepareConfig
from triax.data.prepare.corpus import prepare
from triax.data.prepare.ensure import ensure_prepared
from triax.data.prepare.tokenizer import train_tokenizer
from triax.data.read.shards import ShardWriter, token_dtype
from triax.data.record import save_prepared
from triax.launcher.checks.parallel import batch_divides, world_fits
from triax.launcher.checks.sections import find_warnings, load_checked
from triax.launcher.config.problems import ConfigError, Problem
from triax.parallel.config import ParallelConfig
from triax.training.config import BatchConfig

VOCAB = 300


def write_shard(prefix: Path, num_tokens: int) -> None:
    with ShardWriter(prefix, token_dtype(VOCAB)) as shard:
        shard.add_document(np.arange(num_tokens) % VOCAB)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A config that is ready to run."""
    write_shard(tmp_path / "train", 2000)
    write_shard(tmp_path / "validation", 500)
    return {
        "run": {"name": "test", "dir": str(tmp_path / "runs")},
        "model": {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "ffn_hidden_size": 16}
        | {"vocab_size": VOCAB},
        "data": {
            "sources": [{"path": str(tmp_path / "train")}],
            "validation": str(tmp_path / "validation"),
            "seq_len": 16,
        },
        "batch": {"global_batch_size": 8, "micro_batch_size": 2},
        "budget": {"tokens": 1280},
    }


def problems(
    tmp_path: Path, config: dict[str, Any], *overrides: str, world_size: int | None = None
) -> list[Problem]:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(config))
    try:
        load_checked(path, overrides, world_size)
    except ConfigError as error:
        return error.problems
    return []


def test_a_config_that_is_ready_has_no_problems(tmp_path: Path, config: dict[str, Any]) -> None:
    assert problems(tmp_path, config) == []
    assert problems(tmp_path, config, world_size=4) == []


@pytest.mark.parametrize(
    ("overrides", "world_size", "path", "words"),
    [
        (["batch.global_batch_size=9"], None, "batch.global_batch_size", "8 or 10"),
        ([], 3, "batch.global_batch_size", "x 3 data-parallel processes = 6"),
        ([], 8, "batch.global_batch_size", "use 16"),
        (["parallel.replicate=3"], 4, "parallel.replicate", "is not a multiple of pipeline 1"),
        (["budget.tokens=100"], None, "budget.tokens", "less than one step of 128 tokens"),
        (["budget.tokens_per_parameter=1e308", "budget.tokens=chinchilla"], None,
         "budget.tokens_per_parameter", "is no budget"),
        (["schedule.warmup=11 steps"], None, "schedule.warmup", "more than the whole run's 1.28K"),
        (["data.seq_len=600", "budget.tokens=1M"], None, "data.validation", "too few tokens"),
        (["data.validation=gone"], None, "data.validation", "no such dataset"),
        (["data.tokenizer=gone"], None, "data.tokenizer", "gone/tokenizer.json: no such file"),
        (["checkpoint.init_from=gone"], None, "checkpoint.init_from", "no such checkpoint"),
        (["checkpoint.init_from=" + "x" * 5000], None, "checkpoint.init_from", "no such"),
        (["data.tokenizer=" + "x" * 5000], None, "data.tokenizer", "no such file"),
        (["data.validation=" + "x" * 5000], None, "data.validation", ""),
        (["run.dir=" + "x" * 5000], None, "run.dir", "too long"),
        (["metrics.wandb_project=p"], None, "metrics.wandb_project", 'install "triax[wandb]"'),
        (['data.prepare={"inputs":["x"],"output":"o","vocab_size":301}'], None,
         "data.prepare.vocab_size", "301 is more than model.vocab_size, 300"),
    ],
)  # fmt: skip
def test_each_problem_has_its_place_and_its_mending(
    tmp_path: Path,
    config: dict[str, Any],
    overrides: list[str],
    world_size: int | None,
    path: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = problems(tmp_path, config, *overrides, world_size=world_size)
    assert [problem.path for problem in found] == [path]
    assert words in found[0].message


def test_sections_with_mistakes_do_not_hide_problems_of_the_others(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    found = problems(
        tmp_path, config, "optimizer.lr=x", "batch.global_batch_size=9", "data.validation=gone"
    )
    paths = {problem.path for problem in found}
    assert paths == {"optimizer.lr", "batch.global_batch_size", "data.validation"}


def test_damaged_shards_are_named(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "train.bin").write_bytes(b"\0" * 100)
    (tmp_path / "validation.idx").write_bytes(b"nonsense")
    found = problems(tmp_path, config)
    assert [problem.path for problem in found] == ["data.sources.0.path", "data.validation"]
    assert "cut short" in found[0].message
    assert "shorter than an index's header" in found[1].message


def test_what_the_run_prepares_may_be_missing(tmp_path: Path, config: dict[str, Any]) -> None:
    config["data"] |= {
        "prepare": {"inputs": ["text"], "output": str(tmp_path / "out"), "vocab_size": VOCAB},
        "sources": [{"path": str(tmp_path / "out" / "train")}],
        "validation": str(tmp_path / "out" / "validation"),
        "tokenizer": str(tmp_path / "out" / "tokenizer"),
    }
    assert problems(tmp_path, config) == []
    config["data"]["sources"] = [{"path": str(tmp_path / "out" / "trian")}]
    (problem,) = problems(tmp_path, config)
    assert problem.path == "data.sources.0.path"


def tokenizer(folder: Path, text: str, vocab_size: int = VOCAB) -> str:
    folder.mkdir()
    (folder / "text.txt").write_text(text * 100)
    train_tokenizer([str(folder / "text.txt")], vocab_size, folder)
    return str(folder)


def test_the_tokenizer_fits_the_model_and_the_shards(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    mine = tokenizer(tmp_path / "mine", "one text about cats\n")
    other = tokenizer(tmp_path / "other", "another text about dogs\n")
    large = tokenizer(tmp_path / "large", "and one of birds\n", 400)
    text = tmp_path / "mine" / "text.txt"
    prepare([str(text)], Path(mine), tmp_path / "made", num_workers=1, validation_fraction=0.1)
    config["data"]["sources"] = [{"path": str(tmp_path / "made" / "train")}]
    config["data"].pop("validation")
    assert problems(tmp_path, config, f"data.tokenizer={mine}") == []
    (problem,) = problems(tmp_path, config, f"data.tokenizer={other}")
    assert problem.path == "data.sources.0.path"
    assert "made with another tokenizer" in problem.message
    found = problems(tmp_path, config, f"data.tokenizer={large}")
    assert {problem.path for problem in found} == {"model.vocab_size", "data.sources.0.path"}
    assert any("300 is less than the 400 tokens" in problem.message for problem in found)


def test_the_vocabulary_holds_the_data_s_tokens_without_a_tokenizer_too(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    mine = tokenizer(tmp_path / "mine", "one text about cats\n")
    text = tmp_path / "mine" / "text.txt"
    prepare([str(text)], Path(mine), tmp_path / "made", num_workers=1, validation_fraction=0.1)
    config["data"]["sources"] = [{"path": str(tmp_path / "made" / "train")}]
    config["data"].pop("validation")
    assert problems(tmp_path, config, f"model.vocab_size={VOCAB}") == []
    (problem,) = problems(tmp_path, config, f"model.vocab_size={VOCAB - 1}")
    assert problem.path == "model.vocab_size"
    assert f"less than the {VOCAB} tokens of the tokenizer that made" in problem.message


def test_sizes_that_make_no_model_together_are_refused(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    (problem,) = problems(
        tmp_path, config, "model.ffn_hidden_size=2000000000", "model.hidden_size=2000",
        "model.num_layers=10000", "budget.tokens=1T",
    )  # fmt: skip
    assert problem.path == "model" and "no model has more than 1e+15" in problem.message


def test_a_run_and_its_data_agree_on_where_documents_end(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = tokenizer(tmp_path / "mine", "one text about cats\n")
    prepared = tmp_path / "prepared"
    texts = [str(tmp_path / "mine" / "text.txt")]
    prepare(
        texts, Path(folder), prepared, num_workers=1, validation_fraction=0.0,
        end_of_text="<|reserved_1|>", begin_of_text="<|reserved_2|>",
    )  # fmt: skip
    config["data"] |= {"sources": [{"path": str(prepared / "train")}], "tokenizer": folder}
    config["data"].pop("validation")
    begin, end = problems(tmp_path, config)  # in the order of the paths
    assert (end.path, begin.path) == ("data.end_of_text", "data.begin_of_text")
    assert "with '<|reserved_1|>' at a document's end, this run takes '<|endo" in end.message
    assert "set data.begin_of_text = '<|reserved_2|>'" in begin.message
    named = ["data.end_of_text=<|reserved_1|>", "data.begin_of_text=<|reserved_2|>"]
    assert problems(tmp_path, config, *named) == []
    (problem,) = problems(tmp_path, config, *named, "data.end_of_text=absent")
    assert problem.path == "data.end_of_text"
    assert "'absent' is no token of" in problem.message
    both = problems(tmp_path, config, "data.end_of_text=absent", "data.begin_of_text=gone")
    assert [problem.path for problem in both] == ["data.begin_of_text", "data.end_of_text"]
    assert "'gone' is no token of" in both[0].message


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": "b"}}}', "{["]
)
def test_what_is_no_tokenizer_is_named(
    tmp_path: Path, config: dict[str, Any], content: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    (problem,) = problems(tmp_path, config, f"data.tokenizer={tmp_path}")
    assert "no tokenizer that `tokenizers` can load" in problem.message


def test_unigram_and_added_tokens_and_gaps_count(tmp_path: Path, config: dict[str, Any]) -> None:
    added = Tokenizer(models.Unigram([(f"t{number}", -1.0) for number in range(300)]))
    added.add_tokens(["<new>"])
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 300}, unk_token="a"))
    for tokenizer in (added, gaps):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (problem,) = problems(tmp_path, config, f"data.tokenizer={tmp_path}")
        assert "300 is less than the 301 tokens" in problem.message


def test_a_run_directory_that_cannot_be_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = problems(tmp_path, config, f"run.dir={tmp_path / 'file' / 'runs'}")
    assert problem.path == "run.dir"
    assert "is a file" in problem.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    (problem,) = problems(tmp_path, config, f"run.dir={folder}")
    assert "can't be written" in problem.message


def test_much_repeated_data_is_a_warning(tmp_path: Path, config: dict[str, Any]) -> None:
    assert problems(tmp_path, config, "budget.tokens=8100") == []
    few = load_checked(tmp_path / "run.toml", ["budget.tokens=7936"])
    assert find_warnings(few) == []
    many = load_checked(tmp_path / "run.toml", ["budget.tokens=8100"])
    (warning,) = find_warnings(many)
    assert warning.path == "data.sources.0"
    assert "4.1 times" in warning.message


def test_validation_that_is_not_as_wanted_is_a_warning(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = Path(tokenizer(tmp_path / "mine", "one text about cats\n" * 40))
    text = str(folder / "text.txt")
    made = prepare([text], folder, tmp_path / "made", num_workers=1, validation_fraction=0.4)
    config["data"] |= {
        "sources": [{"path": str(tmp_path / "made/train")}],
        "validation": str(tmp_path / "made/validation"),
        "seq_len": 8,
    }
    config["budget"]["tokens"] = 64
    (tmp_path / "run.toml").write_text(tomli_w.dumps(config))
    assert find_warnings(load_checked(tmp_path / "run.toml")) == []
    settings = made.settings.model_copy(update={"validation_fraction": 0.01})
    save_prepared(
        tmp_path / "made", made.model_copy(update={"settings": settings, "num_shared": 1})
    )
    share, shared = find_warnings(load_checked(tmp_path / "run.toml"))
    assert (share.path, shared.path) == ("data.validation", "data.validation")
    assert "though 1.00% was asked for" in share.message
    assert "1 of 1 validation documents stand in the training split too" in shared.message


def test_texts_that_are_not_here_are_a_warning(tmp_path: Path, config: dict[str, Any]) -> None:
    prepare = 'data.prepare={"inputs":["a-dataset","y.txt"],"output":"o","vocab_size":300}'
    assert problems(tmp_path, config, prepare) == []
    (warning,) = find_warnings(load_checked(tmp_path / "run.toml", [prepare]))
    assert warning.path == "data.prepare.inputs.1"
    assert warning.message.startswith("y.txt: no such file")


@settings(deadline=None)
@given(
    size=st.integers(1, 500),
    micro=st.integers(1, 16),
    replicate=st.integers(1, 4),
    world_size=st.integers(1, 64),
)
def test_the_layout_s_arithmetic(size: int, micro: int, replicate: int, world_size: int) -> None:
    batch = BatchConfig(global_batch_size=size, micro_batch_size=micro)
    parallel = ParallelConfig(replicate=replicate)
    assert bool(list(world_fits(parallel, world_size))) == (world_size % replicate != 0)
    found = list(batch_divides(batch, parallel, world_size))
    assert bool(found) == (size % (micro * world_size) != 0)
    for problem in found:
        sizes = [int(word) for word in problem.message.split("; use ")[1].split(" or ")]
        assert all(fit > 0 and fit % (micro * world_size) == 0 for fit in sizes)
        assert min(abs(fit - size) for fit in sizes) < micro * world_size


def prepared_by_the_run(
    tmp_path: Path, config: dict[str, Any], **changes: str
) -> tuple[dict[str, Any], PrepareConfig]:
    """A config whose data `data.prepare` makes in `out`, out of `text.jsonl`."""
    lines = (json.dumps({"text": f"number {n} of some texts. " * 9}) for n in range(150))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    inputs = [str(tmp_path / "text.jsonl")]
    prepare = {"inputs": inputs, "output": str(out), "vocab_size": VOCAB}
    data = config["data"] | {
        "prepare": prepare,
        "sources": [{"path": str(out / "train")}],
        "validation": str(out / "validation"),
        "tokenizer": str(out / "tokenizer"),
    }
    section = PrepareConfig.model_validate(prepare | {"inputs": tuple(inputs)})
    return config | {"data": data | changes}, section


def test_a_run_that_prepares_its_data_uses_the_tokenizer_that_it_makes(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    train_tokenizer([str(write_text(tmp_path))], VOCAB, tmp_path / "mine")
    mine, section = prepared_by_the_run(tmp_path, config, tokenizer=str(tmp_path / "mine"))
    [problem] = problems(tmp_path, mine)
    assert problem.path == "data.tokenizer"
    assert f"makes the run's tokenizer in {tmp_path}/out/tokenizer" in problem.message
    assert not (tmp_path / "out").exists()
    # The same file elsewhere is the same answer, and so is the path spelled in another way.
    ensure_prepared(section)
    shutil.copytree(tmp_path / "out/tokenizer", tmp_path / "mine", dirs_exist_ok=True)
    assert problems(tmp_path, mine) == []
    spelled, _ = prepared_by_the_run(tmp_path, config, tokenizer=f"{tmp_path}/./out//tokenizer/")
    assert problems(tmp_path, spelled) == []


def write_text(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text("other words\n" * 99)
    return path


@pytest.mark.parametrize("name", ["progress.json", "data.json", "tokenizer/made-from.json"])
def test_a_damaged_record_of_a_preparation_is_found(
    tmp_path: Path, config: dict[str, Any], name: str
) -> None:
    mine, section = prepared_by_the_run(tmp_path, config)
    train_tokenizer(section.inputs, VOCAB, tmp_path / "out/tokenizer")
    (tmp_path / "out" / name).write_text("[1")
    found = problems(tmp_path, mine)
    assert "data.prepare.output" in [problem.path for problem in found]
    assert any(f"{name}: damaged" in problem.message for problem in found)


def test_a_stale_preparation_is_found(tmp_path: Path, config: dict[str, Any]) -> None:
    mine, section = prepared_by_the_run(tmp_path, config)
    ensure_prepared(section)
    assert problems(tmp_path, mine) == []
    [problem] = problems(tmp_path, mine, "data.prepare.vocab_size=299")
    assert problem.path == "data.prepare.vocab_size"
    (tmp_path / "out/data.json").unlink()
    for shard in (tmp_path / "out").glob("*.idx"):
        shard.unlink()
    assert problems(tmp_path, mine) == []
    (tmp_path / "text.jsonl").write_text('{"text": "changed"}')
    [problem] = problems(tmp_path, mine)
    assert problem.path == "data.prepare.inputs"


def test_a_damaged_note_beside_the_shards_is_found(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "data.json").write_text("{")
    found = problems(tmp_path, config)
    assert [problem.path for problem in found] == ["data.sources.0.path", "data.validation"]
    assert "data.json: damaged" in found[0].message


def test_one_source_given_twice_is_found(tmp_path: Path, config: dict[str, Any]) -> None:
    train = str(tmp_path / "train")
    for other in (f"{tmp_path}//x/../train", os.path.relpath(train)):
        spelled = config | {
            "data": config["data"] | {"sources": [{"path": train}, {"path": other}]}
        }
        [problem] = problems(tmp_path, spelled)
        assert "the same path twice" in problem.message
    for suffix in (".bin", ".idx"):
        (tmp_path / f"link{suffix}").symlink_to(f"{train}{suffix}")
        shutil.copy(f"{train}{suffix}", tmp_path / f"copy{suffix}")
    for other in ("link", "copy"):
        sources = [{"path": train}, {"path": str(tmp_path / other)}]
        [problem] = problems(tmp_path, config | {"data": config["data"] | {"sources": sources}})
        assert problem.path == "data.sources.1.path"
        assert "holds the same data" in problem.message


def test_a_weight_below_one_sample_in_a_block_is_found(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    write_shard(tmp_path / "small", 1000)
    sources = [{"path": str(tmp_path / "train")}, {"path": str(tmp_path / "small"), "weight": 1e-5}]
    [problem] = problems(tmp_path, config | {"data": config["data"] | {"sources": sources}})
    assert problem.path == "data.sources" and "less than one sample in" in problem.message
