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

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from triax.common.errors import UserError
from triax.common.files import is_file, is_folder, make_folder, read_regular, write_atomically
from triax.data.config import SMALLEST_VOCABULARY
from triax.data.prepare.text import iter_documents
from triax.data.prepare.text_sample import sample_text

_log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
ROLES = ("system", "user", "assistant", "tool")
ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)
"""What a tokenizer may reserve for conversations."""
_TRIAL = "A trial: 1é 漢 "
"""What a tokenizer has to survive before it is believed."""
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
    for_chat: bool = False,
) -> Path:
    """Train a byte-level BPE on text and write `tokenizer.json` and `tokenizer_config.json`.

    The vocabulary has exactly `vocab_size` entries: `<|endoftext|>` is id 0, then come the 256
    bytes and the merges; if the text is too small for that many, `<|reserved_N|>` tokens fill
    the rest, so that a model's vocabulary never depends on the text. The same text gives the
    same files. Each input gives at most its equal share of `sample_characters`, from all over its
    documents.

    Args:
        inputs: as `iter_documents` takes them.
        output: the folder to write, made if need be.
        for_chat: give `ROLE_TOKENS` the ids behind 0; text that spells them is plain text.

    Returns:
        The path of `tokenizer.json`, which is written last.

    Raises:
        UserError: the vocabulary is too small, the inputs hold no text, or the folder cannot
            be written.
    """
    reserved = [END_OF_TEXT, *(ROLE_TOKENS if for_chat else ())]
    smallest = SMALLEST_VOCABULARY - 1 + len(reserved)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size: {vocab_size}, expected at least {smallest} "
            f"(256 bytes and {', '.join(reserved) if for_chat else 'the end-of-text token'})"
        )
    share = max(1, sample_characters // len(inputs))
    samples = [sample_text(iter_documents([text], text_field), share) for text in inputs]
    tokenizer = _train(chain.from_iterable(samples), vocab_size, ", ".join(inputs), reserved)
    make_folder(output)
    write_atomically(output / "tokenizer_config.json", json.dumps(_transformers_config(), indent=2))
    path = output / "tokenizer.json"
    write_atomically(path, tokenizer.to_str(pretty=True))
    return path


def _train(documents: Iterator[str], vocab_size: int, title: str, reserved: list[str]) -> Tokenizer:
    first = next(documents, None)
    if first is None:
        raise UserError(f"{title}: no documents, the inputs hold no text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=reserved,
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
    """The `tokenizer.json` that a path means: in that folder, or the file itself.

    Raises:
        UserError: there is none; where there is a tokenizer of another format, it says what to do.
    """
    path = Path(path)
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
