"""Our own Unigram tokenizer: the same each time, lossless, with reserved tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from triax.common.errors import UserError
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.encoder import document_encoder
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer, vocabulary_size
from triax.data.prepare.unigram import train_unigram

pytest.importorskip("sentencepiece", reason="needs pip install 'triax[sentencepiece]'")
CHAT = ("<|im_start|>", "<|im_end|>")
TEXT = "the cat sat on the mat, and 1234 dogs ran under the bridge; über 漢字\n" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unigram")
    (folder / "a.txt").write_text(TEXT)
    train_unigram(
        [str(folder / "a.txt")], 420, folder / "tok", split_digits=True, special_tokens=CHAT
    )
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "tok")


def test_it_has_what_was_asked_for(folder: Path, trained: Tokenizer) -> None:
    assert vocabulary_size(trained) == trained.get_vocab_size() == 420
    end = document_tokens(folder / "tok").end
    assert (end.name, end.id) == ("<|endoftext|>", 1)
    assert [trained.token_to_id(name) for name in CHAT] == [2, 3]
    assert [t for t in trained.encode("x 907").tokens if t.strip("▁").isdigit()] == ["9", "0", "7"]
    assert len(trained.encode(" the cat").ids) < len(" the cat")


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_every_text_comes_back(folder: Path, text: str) -> None:
    encoder = document_encoder(folder / "tok", [document_tokens(folder / "tok").end])
    for each in (text, f"{text}<|endoftext|>{CHAT[0]}{text}"):
        ids = encoder.encode(each, add_special_tokens=False).ids
        assert not {1, 2, 3} & set(ids), "no text gives what is reserved"
        assert encoder.decode(ids, skip_special_tokens=False) == each


def test_the_same_text_gives_the_same_file_in_another_process(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom triax.data.prepare.unigram import train_unigram\n"
        "train_unigram([sys.argv[1]], 420, pathlib.Path(sys.argv[2]), split_digits=True,"
        f"special_tokens={CHAT!r})\n"
    )
    command = [sys.executable, "-c", code, str(folder / "a.txt"), str(tmp_path)]
    subprocess.run(command, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / "tok" / name).read_bytes()


def test_byte_bpe_splits_digits_and_reserves_tokens_too(folder: Path, tmp_path: Path) -> None:
    text = [str(folder / "a.txt")]
    path = train_tokenizer(text, 300, tmp_path / "tok", pattern="qwen2", special_tokens=CHAT)
    found = load_tokenizer(path)
    assert [found.token_to_id(name) for name in ("<|endoftext|>", *CHAT)] == [0, 1, 2]
    assert found.encode("1234").tokens == ["1", "2", "3", "4"]
    encoder = document_encoder(path, [document_tokens(path).end])
    ids = encoder.encode(f"a{CHAT[0]}b").ids
    assert not {0, 1, 2} & set(ids) and encoder.decode(ids) == f"a{CHAT[0]}b"
    for size, tokens, message in (
        (258, CHAT, "at least 259"),
        (300, (CHAT[0], CHAT[0]), "given once"),
        (300, ("<|endoftext|>",), "is there anyway"),
    ):
        with pytest.raises(UserError, match=message):
            train_tokenizer(text, size, tmp_path / "other", special_tokens=tokens)
