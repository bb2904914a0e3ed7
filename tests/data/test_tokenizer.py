"""The tokenizer: lossless, deterministic, the same in transformers, clear about bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.data.prepare.text_sample import sample_text
from triax.data.prepare.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)

TEXT = "def main(arguments):\n    return [argument for argument in arguments]  # schön 🙂\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        (folder / f"{number}.txt").write_text(TEXT * number + f"number {number * 17}\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer([corpus], 300, tmp_path_factory.mktemp("tokenizer")).parent


def test_vocabulary(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert vocabulary_size(tokenizer) == tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert load_tokenizer(folder / "tokenizer.json").to_str() == tokenizer.to_str()
    assert len(tokenizer.encode(TEXT).ids) < len(TEXT.encode())


@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_round_trip_is_lossless(folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_reads_it(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert len(theirs) == vocabulary_size(ours)
    assert theirs.eos_token_id == theirs.bos_token_id == ours.token_to_id(END_OF_TEXT)
    for text in (
        TEXT,
        "  leading, ' quoted ' , and trailing . \n\n",
        f"a{END_OF_TEXT}b",
        "\0\t漢字",
    ):
        ids = ours.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False) == text


def test_same_text_gives_the_same_file_in_another_process(
    corpus: str, folder: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib\n"
        "from triax.data.prepare.tokenizer import train_tokenizer\n"
        "train_tokenizer([sys.argv[1]], 300, pathlib.Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", code, corpus, str(tmp_path)], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(folder / "tokenizer.json")
    other = train_tokenizer([corpus], 301, tmp_path / "other")
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(folder)


def test_small_text_still_gives_the_vocabulary_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.txt").write_text("ab ab")
    tokenizer = load_tokenizer(train_tokenizer([str(tmp_path / "x.txt")], 400, tmp_path / "out"))
    assert vocabulary_size(tokenizer) == tokenizer.get_vocab_size() == 400
    assert "stay unused" in caplog.text


def test_sample_is_shared_by_the_inputs(tmp_path: Path) -> None:
    """The first input alone would use up the sample; the second still has its merge."""
    (tmp_path / "a.txt").write_text("x " * 1000)
    (tmp_path / "b.txt").write_text("qq " * 1000)
    inputs = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    path = train_tokenizer(inputs, 280, tmp_path / "out", sample_characters=100)
    assert len(load_tokenizer(path).encode(" qq").ids) == 1


def test_sample_is_taken_from_all_documents(tmp_path: Path) -> None:
    """A corpus that begins in one language learns the other one too."""
    rows = ["漢字仮名" * 500] * 60 + ["the quick brown fox jumps over the lazy dog " * 50] * 60
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    inputs = [str(tmp_path / "a.jsonl")]
    path = train_tokenizer(inputs, 400, tmp_path / "out", sample_characters=60_000)
    tokenizer = load_tokenizer(path)
    assert len(tokenizer.encode(" quick brown fox").ids) == 3
    assert len(tokenizer.encode("漢字仮名").ids) < 6
    again = train_tokenizer(inputs, 400, tmp_path / "again", sample_characters=60_000)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("length", [1, 100, 40_000, 3_000_000])
def test_sample_is_bounded_in_order_and_spread(length: int) -> None:
    texts = [f"{number:08d}" + "x" * (length - 8) for number in range(max(20, 200_000 // length))]
    total = sum(map(len, texts))
    assert "".join(sample_text(iter(texts), total)) == "".join(texts)
    sample = list(sample_text(iter(texts), total // 4))
    assert total // 4 * 0.7 <= sum(map(len, sample)) <= total // 4
    if length >= 100:
        numbers = [int(text[:8]) for text in sample if text[:8].isdigit()]
        assert numbers == sorted(numbers)
        assert numbers[0] < len(texts) * 0.4 and numbers[-1] > len(texts) * 0.6


PANICS = {
    "an unknown token in the template": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {},
        }
    },
    "a decoder that strips more than there is": {
        "decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 5}
    },
    "a damaged table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a prefix longer than tokens": {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": ["a b"],
            "continuing_subword_prefix": "zzzzzzz",
        }
    },
}


@pytest.mark.parametrize("kind", PANICS)
def test_a_file_over_which_the_library_panics(
    folder: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text()) | PANICS[kind]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer that"):
        load_tokenizer(tmp_path)
    capfd.readouterr()  # the library's own words about it


def test_what_a_file_was_saved_with_changes_no_tokens(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["padding"] = {
        "strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": 7,
        "pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT,
    }  # fmt: skip
    raw["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5,
    }  # fmt: skip
    raw["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert load_tokenizer(tmp_path).encode(TEXT).ids == load_tokenizer(folder).encode(TEXT).ids


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["vocab.json", "merges.txt"], r"vocab\.json and merges\.txt; .*tokenizer import {path} "),
        (["tokenizer.model"], r"SentencePiece or tiktoken; .*import {path}/tokenizer\.model "),
        (["vocab.txt"], r"BERT's format.*save_pretrained\(\"{path}\"\)"),
        ([], "no such tokenizer"),
    ],
)
def test_other_formats_say_what_to_do(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x0a\xff")
    message = message.replace("{path}", str(tmp_path))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)
    for name in files:
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path / name)


def test_bad_requests(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(UserError, match="vocab_size: 256, expected at least 257"):
        train_tokenizer([corpus], 256, tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="no documents"):
        train_tokenizer([str(tmp_path / "empty.txt")], 300, tmp_path / "out")
    with pytest.raises(UserError, match="cannot be written"):
        train_tokenizer([corpus], 300, tmp_path / "empty.txt" / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("raw", [None, b"", b"{}", b"[1", b"\xff", b'{"model": {"type": "X"}}'])
def test_missing_or_broken(tmp_path: Path, raw: bytes | None) -> None:
    if raw is not None:
        (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_impossible_paths() -> None:
    for path in ("a" * 5000, "nul\0byte"):
        with pytest.raises(UserError, match="no such tokenizer"):
            load_tokenizer(path)


def test_vocabulary_with_gaps(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["last"] = 500
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert vocabulary_size(load_tokenizer(tmp_path)) == 501
