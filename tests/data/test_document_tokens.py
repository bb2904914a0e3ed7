"""Where documents end and begin: the one answer, and what it makes of text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizer_folders import (
    LLAMA,
    QWEN,
    alone,
    byte_tokenizer,
    llama_3_instruct,
    qwen,
    sentences,
    tokenizer_folder,
)
from tokenizers import Tokenizer, models

from triax.common.errors import UserError
from triax.data.prepare.corpus import prepare
from triax.data.prepare.document_tokens import added_by_tokenizer, document_tokens, special_tokens
from triax.data.prepare.encoder import document_encoder
from triax.data.read.shards import Shard
from triax.data.record import load_prepared


@pytest.mark.parametrize(
    ("make", "end"),
    [(llama_3_instruct, LLAMA[2]), (qwen, QWEN[2]), (sentences, "</s>"), (alone, "<|endoftext|>")],
)
def test_the_tokenizers_own_end_comes_first(
    tmp_path: Path, make: Callable[[Path], Path], end: str
) -> None:
    folder = make(tmp_path / "t")
    tokens = document_tokens(folder)
    assert tokens.end.name == end and tokens.begin is None
    assert tokens.end.id == Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(end)
    assert document_tokens(folder / "tokenizer.json") == tokens


def test_names_are_taken_in_their_order(tmp_path: Path) -> None:
    for number, name in enumerate(("<|endoftext|>", "<|end_of_text|>", "</s>", "<|eot_id|>")):
        folder = tokenizer_folder(tmp_path / str(number), ["<pad>", name], None)
        assert document_tokens(folder).end.name == name
    both = tokenizer_folder(tmp_path / "both", ["<|eot_id|>", "</s>"], {"eos_token": "<absent>"})
    assert document_tokens(both).end.name == "</s>"


def test_any_token_can_be_named(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "t", ["<bos>", "<eos>", "<end_of_turn>"], None)
    with pytest.raises(UserError, match=r"no end-of-text token.*data\.end_of_text.*<end_of_turn>"):
        document_tokens(folder)
    tokens = document_tokens(folder, "<eos>", "<bos>")
    assert tokens.to_json() == {"end_of_text": "<eos>", "begin_of_text": "<bos>"}
    for names, role in ((("<x>", None), "end_of_text"), (("<eos>", "<x>"), "begin_of_text")):
        with pytest.raises(UserError, match=f"{role}: '<x>' is no token of .*there are <bos>"):
            document_tokens(folder, *names)


def test_roles_and_what_is_added(tmp_path: Path) -> None:
    folder = llama_3_instruct(tmp_path / "t")
    assert {role: token.name for role, token in special_tokens(folder).items()} == {
        "bos_token": LLAMA[0],
        "eos_token": LLAMA[2],
    }
    assert added_by_tokenizer(folder) == ([LLAMA[0]], [])
    assert added_by_tokenizer(qwen(tmp_path / "q")) == ([], [])


def test_a_config_that_has_no_end_is_not_read(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "t", ["</s>"], None)
    (folder / "tokenizer_config.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: can't be read: .*regular file"):
        document_tokens(folder)


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = qwen(tmp_path / "q")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: can't be read"):
        document_tokens(folder)


def prepared(
    folder: Path, tokenizer: Path, texts: list[str], begin_of_text: str | None = None
) -> list[list[int]]:
    file = folder / "x.jsonl"
    if not folder.exists():
        folder.mkdir()
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(
        [str(file)], tokenizer, folder / "out",
        num_workers=1, validation_fraction=0.0, begin_of_text=begin_of_text,
    )  # fmt: skip
    shard = Shard.open(folder / "out" / "train-00000")
    starts = [shard.document_start(number) for number in range(shard.num_documents + 1)]
    return [shard.read(start, end - start).tolist() for start, end in itertools.pairwise(starts)]


def test_documents_are_enclosed_and_recorded(tmp_path: Path) -> None:
    folder = llama_3_instruct(tmp_path / "t")
    begin, _, end = (byte_tokenizer(LLAMA).token_to_id(name) for name in LLAMA)
    documents = prepared(tmp_path / "d", folder, ["ab", "c"], begin_of_text=LLAMA[0])
    assert [(tokens[0], tokens[-1], len(tokens)) for tokens in documents] == [
        (begin, end, 4),
        (begin, end, 3),
    ]
    data = load_prepared(tmp_path / "d" / "out")
    assert data is not None
    assert (data.end_of_text_id, data.settings.begin_of_text_id) == (end, begin)
    with pytest.raises(UserError, match=f"begin_of_text_id = {begin}, not nothing"):
        prepared(tmp_path / "d", folder, ["ab", "c"])


def test_a_piece_of_words_ends_nothing(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "t", ["<eos>"], None)
    with pytest.raises(UserError, match="'a' can't end or begin documents"):
        document_encoder(folder, [document_tokens(folder, "a").end])


@pytest.mark.parametrize("kind", ["special", "not special", "in the vocabulary", "words"])
def test_no_text_ends_itself(tmp_path: Path, kind: str) -> None:
    """Whatever the tokenizer calls the token that ends a document, and wherever it has it."""
    name = "<|endoftext|>"
    tokenizer = byte_tokenizer([name], is_special=kind == "special")
    if kind == "in the vocabulary":
        raw = json.loads(tokenizer.to_str())
        raw["model"]["vocab"][name] = 256
        raw["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(raw))
    if kind == "words":
        tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("ab", -1.0), (name, -1.0)], 0))
    (tmp_path / "t").mkdir()
    tokenizer.save(str(tmp_path / "t" / "tokenizer.json"))
    end = document_tokens(tmp_path / "t").end.id
    texts = [f"ab{name}ab", name, "ab" * 530_000 + f" {name}"]
    for tokens in prepared(tmp_path / "d", tmp_path / "t", texts):
        assert tokens.count(end) == 1 and tokens[-1] == end
