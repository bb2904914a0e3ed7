"""A Unigram tokenizer of one's own: trained by SentencePiece, written for `tokenizers`.

SentencePiece's training gives the same pieces for the same text, which that of `tokenizers` does
not: there the pieces for characters that the text lacks come in another order each time.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from triax.common.errors import UserError
from triax.data.prepare.tokenizer import (
    END_OF_TEXT,
    check_vocabulary,
    filled,
    training_text,
    write_tokenizer,
)
from triax.data.prepare.tokenizer_formats import from_sentencepiece, needs_sentencepiece

UNIGRAM_CHARACTERS = 50_000_000
"""Most text that training takes, which holds some hundred bytes a character."""
_LONGEST_LINE = 1 << 14
"""Bytes; training leaves longer lines out, so they are cut."""
_ASCII = string.ascii_letters + string.digits + string.punctuation
"""Are pieces whatever the text has: what spells a special token or a byte's name is then always
cheaper in these than as that piece."""
_NUM_THREADS = 16
"""Of the machine's number of cores the result must not depend."""


def train_unigram(
    inputs: Sequence[str],
    vocab_size: int,
    output: Path,
    text_field: str = "text",
    sample_characters: int = UNIGRAM_CHARACTERS,
    *,
    split_digits: bool = False,
    special_tokens: Sequence[str] = (),
) -> Path:
    """Train a Unigram model with byte fallback and write it as `train_tokenizer` does.

    Id 0 is `<unk>`, which no text gives, 1 is `<|endoftext|>`, then come the special tokens, the
    256 bytes and what was learned, ASCII among it. Nothing is normalised: texts keep every
    character.

    Args:
        split_digits: each digit is a token of its own.

    Raises:
        UserError: as `train_tokenizer`; or sentencepiece isn't installed.
    """
    needs_sentencepiece("a Unigram tokenizer")
    check_vocabulary(vocab_size - 1, special_tokens)  # one more than BPE has: <unk>
    documents = training_text(inputs, text_field, sample_characters)
    model = _trained(documents, vocab_size, split_digits, special_tokens)
    tokenizer, _ = from_sentencepiece(output, model)
    return write_tokenizer(filled(tokenizer, vocab_size), output)


def _trained(
    documents: Iterator[str], vocab_size: int, split_digits: bool, special_tokens: Sequence[str]
) -> bytes:
    """SentencePiece's own file of the model."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=split_digits,
            control_symbols=list(special_tokens),
            required_chars="".join(sorted({*_ASCII, *"".join(special_tokens)})),
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
            eos_piece=END_OF_TEXT,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_LONGEST_LINE,
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        raise UserError(f"sentencepiece can't train on this text: {error}; give more") from None
    return written.getvalue()


def _lines(documents: Iterator[str]) -> Iterator[str]:
    longest = _LONGEST_LINE // 4  # a character has up to four bytes
    for document in documents:
        for line in document.splitlines():
            for start in range(0, len(line), longest):
                yield line[start : start + longest]
