"""The tokenizer: byte-level BPE in the `tokenizers` format that transformers reads too.

Every byte has a token, so any text is encoded and decoded without loss.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from triax.common.errors import UserError
from triax.common.files import is_file, is_folder, make_folder, write_atomically
from triax.data.text import iter_documents

_log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<|eot_id|>")
_SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end-of-text token."""
SAMPLE_CHARACTERS = 200_000_000
"""Most text that training reads: merges of frequent pairs are settled long before."""


def train_tokenizer(
    inputs: Sequence[str],
    vocab_size: int,
    output: Path,
    text_field: str = "text",
    sample_characters: int = SAMPLE_CHARACTERS,
) -> Path:
    """Train a byte-level BPE on text and write `tokenizer.json` and `tokenizer_config.json`.

    The vocabulary has exactly `vocab_size` entries: `<|endoftext|>` is id 0, then come the 256
    bytes and the merges; if the text is too small for that many, `<|reserved_N|>` tokens fill
    the rest, so that a model's vocabulary never depends on the text. The same text gives the
    same files. Each input gives at most its equal share of `sample_characters`.

    Args:
        inputs: as `iter_documents` takes them.
        output: the folder to write, made if need be.

    Returns:
        The path of `tokenizer.json`, which is written last.

    Raises:
        UserError: the vocabulary is too small, the inputs hold no text, or the folder cannot
            be written.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size: {vocab_size}, expected at least {_SMALLEST_VOCABULARY} "
            "(256 bytes and the end-of-text token)"
        )
    share = sample_characters // len(inputs)
    samples = [_sample(iter_documents([text], text_field), share) for text in inputs]
    tokenizer = _train(chain.from_iterable(samples), vocab_size, ", ".join(inputs))
    make_folder(output)
    write_atomically(output / "tokenizer_config.json", json.dumps(_transformers_config(), indent=2))
    path = output / "tokenizer.json"
    write_atomically(path, tokenizer.to_str(pretty=True))
    return path


def _sample(documents: Iterator[str], num_characters: int) -> Iterator[str]:
    for document in documents:
        yield document[:num_characters]
        num_characters -= len(document)
        if num_characters <= 0:
            return


def _train(documents: Iterator[str], vocab_size: int, title: str) -> Tokenizer:
    first = next(documents, None)
    if first is None:
        raise UserError(f"{title}: no documents, the inputs hold no text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain([first], documents), trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    if missing > 0:
        _log.warning("the text is small: %d of %d tokens stay unused", missing, vocab_size)
        tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    return tokenizer


def _transformers_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer from its folder or its `tokenizer.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    file = _tokenizer_file(path)
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: no tokenizer that `tokenizers` can load: {error}") from None


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document.

    Raises:
        UserError: the tokenizer has none of the known ones.
    """
    for name in _END_OF_TEXT_NAMES:
        number = tokenizer.token_to_id(name)
        if number is not None:
            return int(number)
    raise UserError(
        f"the tokenizer has no end-of-text token, expected one of {', '.join(_END_OF_TEXT_NAMES)}"
    )


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One above the largest token id; ids need not be without gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def tokenizer_fingerprint(path: Path | str) -> str:
    """A short hash of `tokenizer.json`, equal only for the same file.

    Raises:
        UserError: it is missing.
    """
    return hashlib.sha256(_tokenizer_file(path).read_bytes()).hexdigest()[:16]


def _tokenizer_file(path: Path | str) -> Path:
    path = Path(path)
    file = path / "tokenizer.json" if is_folder(path) else path
    if not is_file(file):
        raise UserError(
            f"{file}: no such tokenizer; `triax tokenizer train` writes one, or give the folder "
            "that holds a tokenizer.json"
        )
    return file
