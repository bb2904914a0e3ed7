"""Imported tokenizers give the ids of the libraries that they came from."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from triax.common.errors import UserError
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.split_patterns import PATTERNS, byte_of_character
from triax.data.prepare.tokenizer import load_tokenizer
from triax.data.prepare.tokenizer_formats import import_tokenizer

TEXTS = [
    "def find(self, name):\n    return [name for name in self.names]\n\n",
    "We'll see what they've said; I'm sure it's 12345 or 0.5 that he'd like.\n",
    "L'été, cafe\u0301, 東京で何を食べますか, Привет, мир! aaaa aaaaa aaaaaaaa ====",
    "a < b > c / d 0x0A unks pads",
]
HOSTILE = [
    "",
    " ",
    "  a  b ",
    "\n\n\n",
    "aaaaaaaaaaaaa",
    "é e\u0301 漢 👩\u200d👧",
    "1234567",
    *TEXTS,
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A byte-level BPE without special tokens, so that ids are ranks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def ranks(trained: Tokenizer) -> dict[bytes, int]:
    byte_of = byte_of_character()
    vocab = trained.get_vocab()
    return {bytes(byte_of[char] for char in word): number for word, number in vocab.items()}


@pytest.fixture(scope="module")
def from_tiktoken(tmp_path_factory: pytest.TempPathFactory, ranks: dict[bytes, int]) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tiktoken")
    write_tiktoken(folder / "tokenizer.model", ranks)
    path = import_tokenizer(folder / "tokenizer.model", folder / "out", "cl100k")
    return load_tokenizer(path)


def write_tiktoken(path: Path, ranks: dict[bytes, int]) -> None:
    lines = [base64.b64encode(token) + f" {rank}".encode() for token, rank in ranks.items()]
    path.write_bytes(b"\n".join(lines))


@settings(max_examples=60, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=80), st.sampled_from(HOSTILE), st.text("a b'sé1\n", max_size=60)
    )
)
def test_a_tiktoken_file(ranks: dict[bytes, int], from_tiktoken: Tokenizer, text: str) -> None:
    original = tiktoken.Encoding(
        "original", pat_str=PATTERNS["cl100k"], mergeable_ranks=ranks, special_tokens={}
    )
    assert from_tiktoken.encode(text).ids == original.encode_ordinary(text)


def test_its_documents_end_with_an_appended_token(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    write_tiktoken(tmp_path / "tokenizer.model", ranks)
    names = ["<|end|>", "<|begin|>"]
    path = import_tokenizer(tmp_path / "tokenizer.model", tmp_path / "out", "gpt2", names)
    assert document_tokens(path).end.name == "<|end|>"
    assert document_tokens(path).end.id == len(ranks)
    default = import_tokenizer(tmp_path / "tokenizer.model", tmp_path / "default", "gpt2")
    assert document_tokens(default).end.name == "<|endoftext|>"


@pytest.mark.parametrize("text", HOSTILE)
def test_vocab_and_merges(tmp_path: Path, trained: Tokenizer, text: str) -> None:
    trained.model.save(str(tmp_path))
    size = trained.get_vocab_size()
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
        "added_tokens_decoder": {str(size): {"content": "<|endoftext|>", "special": True}},
        "chat_template": "{{ messages }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    path = import_tokenizer(tmp_path, tmp_path / "out")
    found = load_tokenizer(path)
    assert found.encode(text).ids == trained.encode(text).ids
    assert found.decode(found.encode(text).ids) == text
    assert document_tokens(path).end.id == size
    written = json.loads(path.with_name("tokenizer_config.json").read_text(encoding="utf-8"))
    assert (written["eos_token"], written["chat_template"]) == ("<|endoftext|>", "{{ messages }}")


def sentencepiece_model(path: Path, **options: Any) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=written,
        vocab_size=360,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [False, True])
def test_a_sentencepiece_model(tmp_path: Path, model_type: str, prefix: bool) -> None:
    original = sentencepiece_model(
        tmp_path / "tokenizer.model",
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
    )
    path = import_tokenizer(tmp_path / "tokenizer.model", tmp_path / "out")
    found = load_tokenizer(path)
    for text in HOSTILE:
        assert found.encode(text, add_special_tokens=False).ids == original.encode(text)
        assert found.decode(original.encode(text)) == original.decode(original.encode(text))
    assert document_tokens(path).end.name == "</s>"


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def beside_original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Tokenizer]:
    """A SentencePiece model, and what is made of it."""
    folder = tmp_path_factory.mktemp("model")
    original = sentencepiece_model(
        folder / "tokenizer.model",
        model_type=request.param,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|user|>"],
    )
    found = load_tokenizer(import_tokenizer(folder / "tokenizer.model", folder / "out"))
    found.encode_special_tokens = True
    return original, found


HARD = st.lists(
    st.one_of(
        st.sampled_from(
            [*HOSTILE, "<s>", "</s>", "<0x0A>", "▁", "\u00a0", "\r\n", "12345", "\ufeff"]
        ),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    ),
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=60)
@given(text=HARD)
def test_a_sentencepiece_model_on_hostile_text(
    beside_original: tuple[Any, Tokenizer], text: str
) -> None:
    """Of segmentations that are as likely Unigram may take another: one library adds up in fp32."""
    original, found = beside_original
    expected, ids = original.encode(text), found.encode(text, add_special_tokens=False).ids
    if ids != expected:
        scores = [sum(map(original.get_score, each)) for each in (ids, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3) and any(scores)
        assert original.decode(ids) == original.decode(expected)
    assert found.decode(ids, skip_special_tokens=False) == original.decode(ids)


def test_bad_requests(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    file = tmp_path / "tokenizer.model"
    with pytest.raises(UserError, match="no such file"):
        import_tokenizer(file, tmp_path / "out")
    write_tiktoken(file, ranks)
    with pytest.raises(UserError, match=r"doesn't say how text is split.*--pattern, one of cl100k"):
        import_tokenizer(file, tmp_path / "out")
    with pytest.raises(UserError, match="'no', expected one of"):
        import_tokenizer(file, tmp_path / "out", "no")
    write_tiktoken(file, {token: rank for token, rank in ranks.items() if token != b"x"})
    with pytest.raises(UserError, match="lacks tokens of single bytes"):
        import_tokenizer(file, tmp_path / "out", "gpt2")
    file.write_bytes(b"\x0a\xff")
    with pytest.raises(UserError, match="neither a tiktoken nor a SentencePiece file"):
        import_tokenizer(file, tmp_path / "out")
    with pytest.raises(UserError, match=r"no vocab\.json and merges\.txt"):
        import_tokenizer(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "tokenizer.json").touch()
    with pytest.raises(UserError, match=r"holds a tokenizer\.json already"):
        import_tokenizer(file, tmp_path / "full")
