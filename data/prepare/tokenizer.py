"""The tokenizer: byte-level BPE in the `tokenizers` format that transformers reads too.

Every byte has a token, so any text is encoded and decoded without loss.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from triax.common.errors import UserError
from triax.common.files import is_file, is_folder, make_folder, read_regular, write_atomically
from triax.common.paths import url_of
from triax.data.config import SMALLEST_VOCABULARY
from triax.data.prepare.split_patterns import PATTERNS
from triax.data.prepare.text import iter_documents
from triax.data.prepare.text_sample import sample_text
from triax.data.remote.mirror import mirrored_files

_log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
ROLES = ("system", "user", "assistant", "tool")
ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)
"""What a tokenizer may reserve for conversations."""
_TRIAL = "A trial: 1é 漢 "
"""What a tokenizer has to survive before it is believed."""
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What of a tokenizer's folder in a store is looked at."""
MOST_BYTES = 1 << 28
"""Of any file of a tokenizer."""
SAMPLE_CHARACTERS = 200_000_000
"""Most text that training takes: merges of frequent pairs are settled long before."""


def train_tokenizer(
    inputs: Sequence[str],
    vocab_size: int,
    output: Path,
    text_field: str = "text",
    sample_characters: int = SAMPLE_CHARACTERS,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (),
) -> Path:
    """Train a byte-level BPE on text and write `tokenizer.json` and `tokenizer_config.json`.

    The vocabulary has exactly `vocab_size` entries: `<|endoftext|>` is id 0, then come the special
    tokens, the 256 bytes and the merges; if the text is too small for that many, `<|reserved_N|>`
    tokens fill the rest, so that a model's vocabulary never depends on the text. The same text
    gives the same files. Each input gives at most its equal share of `sample_characters`, from all
    over its documents.

    Args:
        inputs: as `iter_documents` takes them.
        output: the folder to write, made if need be.
        pattern: how text is split into words, one of `PATTERNS`.
        special_tokens: that are reserved, such as a chat's; no text gives them.

    Returns:
        The path of `tokenizer.json`, which is written last.

    Raises:
        UserError: the vocabulary is too small, the inputs hold no text, or the folder cannot
            be written.
    """
    check_vocabulary(vocab_size, special_tokens)
    documents = training_text(inputs, text_field, sample_characters)
    tokenizer = _train(documents, vocab_size, pattern, special_tokens)
    return write_tokenizer(tokenizer, output)


def check_vocabulary(vocab_size: int, special_tokens: Sequence[str]) -> None:
    """Refuse a vocabulary that can't hold what it has to.

    Raises:
        UserError: it is too small, or a special token is named twice or is the end of text.
    """
    names = [END_OF_TEXT, *special_tokens]
    for name in names:
        if names.count(name) > 1 or not name:
            raise UserError(
                f"special token {name!r}: each is given once, and {END_OF_TEXT} is there anyway"
            )
    smallest = SMALLEST_VOCABULARY + len(special_tokens)
    if vocab_size < smallest:
        more = f" and {len(special_tokens)} special ones" if special_tokens else ""
        raise UserError(
            f"vocab_size: {vocab_size}, expected at least {smallest} "
            f"(256 bytes and the end-of-text token{more})"
        )


def training_text(inputs: Sequence[str], text_field: str, sample_characters: int) -> Iterator[str]:
    """A sample of the inputs' documents, of which each input gives at most its equal share.

    Raises:
        UserError: there is no text.
    """
    share = max(1, sample_characters // len(inputs))
    samples = [sample_text(iter_documents([text], text_field), share) for text in inputs]
    documents = chain.from_iterable(samples)
    first = next(documents, None)
    if first is None:
        raise UserError(f"{', '.join(inputs)}: no documents, the inputs hold no text")
    return chain([first], documents)


def write_tokenizer(tokenizer: Tokenizer, output: Path) -> Path:
    """Write `tokenizer_config.json` and then `tokenizer.json`, whose path is returned.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(output)
    write_atomically(output / "tokenizer_config.json", json.dumps(_transformers_config(), indent=2))
    path = output / "tokenizer.json"
    write_atomically(path, tokenizer.to_str(pretty=True))
    return path


def _train(
    documents: Iterator[str], vocab_size: int, pattern: str, special_tokens: Sequence[str]
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return filled(tokenizer, vocab_size)


def splitting(pattern: str) -> Any:
    """What splits text into words by a pattern of `PATTERNS`, and writes them as bytes."""
    if pattern == "gpt2":  # it is the library's own
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_])


def filled(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer with as many unused tokens as its vocabulary lacks."""
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

    It cuts, pads and drops nothing, whatever it was saved with: `tokenizers` keeps truncation,
    padding and dropout in the file.

    Raises:
        UserError: it is missing or damaged, or the library's Rust code panics over it.
    """
    file = tokenizer_file(path)
    with library_errors(file):
        tokenizer = Tokenizer.from_str(read_regular(file, MOST_BYTES).decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        with suppress(Exception):  # one that can't encode these words is of use for other ones
            tokenizer.decode(tokenizer.encode(_TRIAL).ids)
    return tokenizer


@contextmanager
def library_errors(file: Path | str) -> Iterator[None]:
    """Turn what `tokenizers` raises over a tokenizer into a UserError.

    It raises bare Exception, and where its Rust code panics a `PanicException`, which is no
    Exception and can't be imported or pickled.

    Raises:
        UserError: the library failed inside the block.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{file}: no tokenizer that `tokenizers` can load: {error}; fetch it again, or make "
            "another with `triax tokenizer train`"
        ) from None


def decode(tokenizer: Tokenizer, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The text of tokens.

    Raises:
        UserError: the library fails over them.
    """
    with library_errors("the tokenizer"):
        return str(tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One above the largest token id; ids need not be without gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def tokenizer_fingerprint(path: Path | str) -> str:
    """A short hash of `tokenizer.json`, equal only for the same file.

    Raises:
        UserError: it is missing.
    """
    return hashlib.sha256(read_regular(tokenizer_file(path), MOST_BYTES)).hexdigest()[:16]


def tokenizer_file(path: Path | str) -> Path:
    """The `tokenizer.json` that a path means: in that folder, or the file itself. What is in a
    store is brought here, with the files beside it.

    Raises:
        UserError: there is none; where there is a tokenizer of another format, it says what to do.
    """
    folder = Path(str(path).removesuffix("/tokenizer.json")) if url_of(path) else Path(path)
    path = mirrored_files(folder, FILES)
    file = path / "tokenizer.json" if is_folder(path) else path
    other = _other_format(path)
    if other is not None and (file.name != "tokenizer.json" or not is_file(file)):
        raise UserError(f"{path}: {other}")
    if not is_file(file):
        raise UserError(
            f"{file}: no such tokenizer; `triax tokenizer train` writes one, or give the folder "
            "that holds a tokenizer.json"
        )
    return file


def _other_format(path: Path) -> str | None:
    """What a folder without tokenizer.json, or a file, holds of other formats, and what to do."""
    folder = path if is_folder(path) else path.parent
    if is_file(folder / "vocab.json") and is_file(folder / "merges.txt"):
        return f"GPT-2's format, vocab.json and merges.txt; {_import_advice(folder)}"
    if is_file(folder / "vocab.txt"):
        return (
            "BERT's format, which triax doesn't read; transformers writes a tokenizer.json: "
            "python -c 'from transformers import AutoTokenizer; "
            f'AutoTokenizer.from_pretrained("{folder}").save_pretrained("{folder}")\''
        )
    names = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    files = [folder / name for name in names] if is_folder(path) else [path]
    for file in files:
        if file.suffix in (".model", ".tiktoken") and is_file(file):
            return f"{file.name} is a file of SentencePiece or tiktoken; {_import_advice(file)}"
    return None


def _import_advice(path: Path) -> str:
    return (
        "make a tokenizer.json of it: triax tokenizer import "
        f"{shlex.quote(str(path))} --output FOLDER"
    )
