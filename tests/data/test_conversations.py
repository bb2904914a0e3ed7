"""Conversations as shards: whole in their windows, with weights, and other data when others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triax.common.errors import UserError
from triax.common.tokens import IGNORE_INDEX
from triax.data.prepare.answers import LossOn
from triax.data.prepare.chat_template import ChatTemplate
from triax.data.prepare.conversations import ChatRules, Kind, prepare_conversations
from triax.data.prepare.tokenizer import load_tokenizer, train_tokenizer
from triax.data.read.conversations import Conversations
from triax.data.read.digest import shard_digest
from triax.data.read.loader import validation_batches
from triax.data.read.opening import open_source
from triax.data.record import PreparedData
from triax.inference.load import ModelFolder
from triax.inference.validation import Sequences, _num_own_sequences, read
from triax.launcher.cli import main
from triax.models.families import model_config

VOCAB_SIZE = 280
SHAPE = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 16}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text("user: what? assistant: this and that.", encoding="utf-8")
    train_tokenizer([str(folder / "text")], VOCAB_SIZE, folder)
    return folder


def rows(num_rows: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"what is {n}?", "completion": "x" * (1 + n * n % 17) + str(n)}
        for n in range(num_rows)
    ]


def prepared(
    folder: Path, tokenizer: Path, given: list[dict[str, Any]],
    kind: Kind = "conversations", loss_on: LossOn = "answers", **settings: Any,
) -> PreparedData:  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    rules = ChatRules(kind, loss_on, ChatTemplate.to_teach(tokenizer))
    return prepare_conversations([str(path)], tokenizer, folder / "out", rules, **settings)


def opened(folder: Path, seq_len: int, **settings: Any) -> Conversations:
    source = open_source(folder / "out" / "train", seq_len, VOCAB_SIZE, **settings)
    assert isinstance(source, Conversations)
    return source


def texts(source: Conversations, tokenizer: Path) -> list[tuple[str, str]]:
    """Every conversation that is read, and what of it is learned."""
    loaded, found = load_tokenizer(tokenizer), []
    for number in range(source.num_windows):
        window = source.window(number)
        assert window.weights is not None
        for document in range(int(window.document_ids[-1]) + 1):
            here = window.document_ids == document
            if not window.weights[here].any():
                continue  # padding
            learned = window.tokens[here][window.weights[here] > 0]
            found.append(
                tuple(
                    loaded.decode(tokens.tolist(), skip_special_tokens=False)
                    for tokens in (window.tokens[here], learned)
                )
            )
    return sorted(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens_per_shard", [50, 10_000])
def test_every_conversation_is_read_once_whole_and_with_its_weights(
    tmp_path: Path, tokenizer: Path, tokens_per_shard: int
) -> None:
    data = prepared(
        tmp_path, tokenizer, rows(40), tokens_per_shard=tokens_per_shard, validation_fraction=0.1
    )
    assert (data.train.documents, data.validation.documents) == (36, 4)
    source = opened(tmp_path, 127)
    assert source.num_windows < 36
    validation = open_source(tmp_path / "out" / "validation", 127, VOCAB_SIZE)
    assert isinstance(validation, Conversations)
    found = sorted([*texts(source, tokenizer), *texts(validation, tokenizer)])
    expected = [
        (
            f"user: {row['prompt']}\nassistant: {row['completion']}<|endoftext|>\n",
            f" {row['completion']}<|endoftext|>",
        )
        for row in rows(40)
    ]
    assert found == sorted(expected)


def test_batches_tell_positions_and_learn_answers_alone(tmp_path: Path, tokenizer: Path) -> None:
    prepared(tmp_path, tokenizer, rows(12), validation_fraction=0)
    source = opened(tmp_path, 127)
    [batch] = validation_batches(
        source, 99, micro_batch_size=source.num_windows, dp_rank=0, dp_size=1, mask_documents=True
    )
    assert batch.weights_BT is not None and batch.positions_BT is not None
    assert batch.document_ids_BT is not None
    num_learned = sum(
        int((window.weights > 0).sum())
        for window in map(source.window, range(source.num_windows))
        if window.weights is not None
    )
    assert int(batch.num_targets) == num_learned == float(batch.total_weight)
    begins = np.diff(batch.document_ids_BT[0].numpy(), prepend=-1) > 0
    assert (batch.positions_BT[0].numpy()[begins] == 0).all()
    assert batch.positions_BT[0].max() < 80
    is_target = batch.targets_BT != IGNORE_INDEX
    assert not is_target[:, -1].all(), "padding is no target"


def test_those_that_are_too_long(tmp_path: Path, tokenizer: Path) -> None:
    prepared(tmp_path, tokenizer, [*rows(8), {"prompt": "?", "completion": "y" * 300}],
             validation_fraction=0)  # fmt: skip
    dropped = opened(tmp_path, 63)
    assert dropped.num_too_long == 1
    assert len(texts(dropped, tokenizer)) == 8
    assert dropped.news == (
        "1 of 9 conversations have more than data.seq_len + 1 = 64 tokens: they are left out"
    )
    cut = opened(tmp_path, 63, too_long="truncate")
    [whole] = [text for text, _ in texts(cut, tokenizer) if "yyy" in text]
    assert whole.endswith("yyy") and len(texts(cut, tokenizer)) == 9
    assert "the ends of 1 are left out" in (cut.news or "")
    with pytest.raises(UserError, match="no conversation fits: the shortest has"):
        opened(tmp_path, 7)


def test_an_evaluation_reads_what_the_run_validates_on(tmp_path: Path, tokenizer: Path) -> None:
    given = [*rows(8), {"prompt": "?", "completion": "y" * 300}]
    prepared(tmp_path, tokenizer, given, validation_fraction=0)
    prefix = tmp_path / "out/train"
    for too_long in ("drop", "truncate"):
        source = opened(tmp_path, 63, too_long=too_long)
        config = {
            "data": {"validation": str(prefix), "seq_len": 63, "too_long": too_long},
            "eval": {"batches": 1}, "batch": {"global_batch_size": 100},
        }  # fmt: skip
        for objective, own in (("sft", source.num_windows), ("dpo", None)):
            record = {"config": config | {"objective": {"kind": objective}}}
            model = model_config(vocab_size=VOCAB_SIZE, **SHAPE)
            folder = ModelFolder(tmp_path, model, print, str(tokenizer), 63, record)
            reading = read(folder, Sequences(str(prefix)))
            assert reading.num_sequences == source.num_windows
            assert np.array_equal(reading.source.window(0).tokens, source.window(0).tokens)
            assert _num_own_sequences(folder, reading) == own


def test_answers_of_a_pair_share_a_window(tmp_path: Path, tokenizer: Path) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": f"{n}", "rejected": f"no {n}"} for n in range(9)]
    data = prepared(tmp_path, tokenizer, pairs, kind="pairs", validation_fraction=0)
    assert data.train.documents == 18
    source = opened(tmp_path, 127)
    for number in range(source.num_windows):
        window = source.window(number)
        assert window.weights is not None
        ids = np.unique(window.document_ids[window.weights > 0])
        assert (ids == np.arange(len(ids))).all() and len(ids) % 2 == 0
    learned = {answer for _, answer in texts(source, tokenizer)}
    assert learned == {f" {text}<|endoftext|>" for n in range(9) for text in (f"{n}", f"no {n}")}


def test_what_is_learned_makes_other_data(tmp_path: Path, tokenizer: Path) -> None:
    kinds: tuple[LossOn, ...] = ("answers", "contents")
    digests = set()
    for loss_on in kinds:
        prepared(tmp_path / loss_on, tokenizer, rows(9), loss_on=loss_on, validation_fraction=0)
        digests.add(shard_digest(tmp_path / loss_on / "out" / "train-00000"))
    assert len(digests) == 2
    with pytest.raises(UserError, match="chat"):
        prepared(tmp_path / "answers", tokenizer, rows(9), loss_on="contents",
                 validation_fraction=0)  # fmt: skip


def test_rows_without_anything_to_learn_are_counted(tmp_path: Path, tokenizer: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "?"}]}
    data = prepared(tmp_path, tokenizer, [asked, *rows(3), asked], validation_fraction=0)
    assert (data.train.documents, data.num_left_out) == (3, 2)
    with pytest.raises(UserError, match="nothing to learn from: 1 rows, of which 1 have no"):
        prepared(tmp_path / "none", tokenizer, [asked], validation_fraction=0)


def test_a_wrong_row_is_named_and_nothing_is_left(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    wrong = {"messages": [{"role": "wizard", "content": "?"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows(2), wrong]))
    out = tmp_path / "out"
    argv = ["data", "conversations", str(path), "--tokenizer", str(tokenizer), "--output", str(out)]
    assert main(argv) == 2
    assert "rows.jsonl, line 3: messages, message 1: role 'wizard'" in " ".join(
        capsys.readouterr().err.split()
    )
    assert [entry.name for entry in out.iterdir()] == [".lock"]


def test_a_shard_without_its_weights_isnt_taken_for_text(tmp_path: Path, tokenizer: Path) -> None:
    prepared(tmp_path, tokenizer, rows(30), tokens_per_shard=300, validation_fraction=0)
    first = tmp_path / "out" / "train-00000.weights"
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(UserError, match=r"train-00000: has no \.weights, which other shards"):
        opened(tmp_path, 127)
    first.write_bytes(kept[:-2])
    with pytest.raises(UserError, match=r"train-00000\.weights: .* bytes, but"):
        opened(tmp_path, 127)
    first.write_bytes(b"x" * len(kept))
    with pytest.raises(UserError, match="no file of token weights"):
        opened(tmp_path, 127)


def test_a_tokenizer_may_reserve_tokens_for_the_roles(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("user: <|user|> what?", encoding="utf-8")
    folder = tmp_path / "tokenizer"
    argv = ["tokenizer", "train", str(tmp_path / "text"), "--chat", "--output", str(folder)]
    assert main([*argv, "--vocab-size", "260"]) == 2
    assert main([*argv, "--vocab-size", "270"]) == 0
    template = ChatTemplate.to_teach(folder)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    text = template.write(messages).text
    assert text == "<|user|>?<|endoftext|><|assistant|>!<|endoftext|>"
    ids = load_tokenizer(folder).encode(text).ids
    assert (ids[0], ids[2:4], ids[-1]) == (2, [0, 3], 0)
