"""A tokenizer for documents: in it no text can give the tokens that end or begin one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from triax.common.errors import UserError
from triax.data.prepare.document_tokens import Token
from triax.data.prepare.tokenizer import library_errors, load_tokenizer


def document_encoder(path: Path, reserved: Sequence[Token]) -> Tokenizer:
    """Load a tokenizer such that text which spells a special token is plain text.

    That holds for the reserved ones even if the tokenizer's file doesn't call them special, or
    has them among the words of its model, where Unigram for one finds them.

    Raises:
        UserError: the tokenizer is of no use, or a reserved token is a piece of ordinary words.
    """
    tokenizer = load_tokenizer(path)
    words = tokenizer.get_vocab(with_added_tokens=False)
    with library_errors(path):
        tokenizer = _without_words(tokenizer, [t.name for t in reserved if t.name in words])
        tokenizer.encode_special_tokens = True
        tokenizer.post_processor = None  # it would trim offsets, by which pieces are cut
        tokenizer.add_special_tokens(
            [
                AddedToken(token.name, special=True, normalized=False)
                for token in reserved
                if token.name not in words
            ]
        )
    return tokenizer


def _without_words(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """The same ids, with these words under names that no text can guess."""
    if not names:
        return tokenizer
    raw = json.loads(tokenizer.to_str())
    model, vocab = raw["model"], raw["model"]["vocab"]
    _refuse_pieces(names, model)
    renamed = {name: secrets.token_hex(32) for name in names}
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(word, word): number for word, number in vocab.items()}
    else:
        model["vocab"] = [[renamed.get(word, word), score] for word, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    raw["added_tokens"] = [
        token for token in raw["added_tokens"] if token["content"] not in renamed
    ]
    return Tokenizer.from_str(json.dumps(raw))


def _refuse_pieces(names: Sequence[str], model: dict[str, Any]) -> None:
    """What ordinary text is made of can't end it."""
    pieces: set[str] = set()
    for merge in model.get("merges") or ():
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        pieces |= {first, second, first + second}
    for name in names:
        if len(name) == 1 or name in pieces:
            raise UserError(
                f"{name!r} can't end or begin documents: the tokenizer makes ordinary text of it; "
                "name a token that stands for nothing else (end_of_text, begin_of_text)"
            )
