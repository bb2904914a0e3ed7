"""Tokenizers of other formats made into `tokenizer.json`, with the ids of the original library.

| what | how it is read |
|---|---|
| `vocab.json` and `merges.txt` | byte-level BPE, split as GPT-2 or by a named pattern |
| a file of `tiktoken` (base64 and rank in each line) | its merges are found again from the ranks |
| a SentencePiece `.model` (BPE or Unigram) | its pieces, scores and normaliser |

SentencePiece and `tokenizers` don't agree on everything that a model may ask for, so hostile text
is encoded by both, and a model for which the ids differ is refused.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from triax.common.errors import UserError
from triax.common.files import is_file, is_folder, make_folder, read_regular, write_atomically
from triax.data.prepare.split_patterns import PATTERNS, byte_of_character
from triax.data.prepare.tokenizer import END_OF_TEXT, MOST_BYTES, library_errors

_PATTERN_OF_CLASS = {
    "GPT2Tokenizer": "gpt2",
    "GPT2TokenizerFast": "gpt2",
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
}
_TRIALS = (
    "Hello, world! It's 12345 or 0.5.",
    "  two  spaces,   three \t tab\n\n\nlines\r\n  end  ",
    "L'été, cafe\u0301 Ünï; 東京 한국어 Привет مرحبا ½ ﬁ Ⅷ ＡＢ",
    "👩\u200d👩\u200d👧 \ufeff \u00a0\u3000 \x00\x7f \u2581 ▁ a▁b",
    "aaaa aaaaaaa ======== def f(x):\n    return x",
    "",
    " ",
    "x",
)
"""Encoded by the original library and by what was made of it."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNIGRAM, _BPE = 1, 3, 4, 1, 2
"""SentencePiece's numbers for kinds of pieces and of models."""
_OF_TEXT = (_NORMAL, _USER_DEFINED)
_NEVER_CHOSEN = 1000.0
"""Below any score: SentencePiece finds no control or byte piece in a text that spells it."""
_SPELLED = "<s></s><unk><0x0A> <pad>"


def import_tokenizer(
    path: Path, output: Path, pattern: str | None = None, special_tokens: Sequence[str] = ()
) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json` that encode as another format's files do.

    Args:
        path: a folder that holds `vocab.json` and `merges.txt`, or a file of `tiktoken` or of
            SentencePiece.
        output: the folder to write, made if need be.
        pattern: how text is split into words, one of `PATTERNS`; none takes what the files say.
        special_tokens: appended to the vocabulary in this order; the first ends documents. None
            appends `<|endoftext|>` where the vocabulary has no end.

    Returns:
        The path of `tokenizer.json`.

    Raises:
        UserError: there is no such tokenizer, it is damaged, or its ids can't be had.
    """
    if pattern is not None and pattern not in PATTERNS:
        raise UserError(f"pattern: {pattern!r}, expected one of {', '.join(sorted(PATTERNS))}")
    if is_file(output / "tokenizer.json"):
        raise UserError(f"{output}: holds a tokenizer.json already; use another output folder")
    with library_errors(path):
        tokenizer, config = _reader(path)(path, pattern)
        end = _append(tokenizer, special_tokens, config.get("eos_token"))
    make_folder(output)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config, "eos_token": end}
    write_atomically(output / "tokenizer_config.json", json.dumps(config, indent=2))
    written = output / "tokenizer.json"
    write_atomically(written, tokenizer.to_str(pretty=True))
    return written


Read = Callable[[Path, str | None], tuple[Tokenizer, dict[str, Any]]]
"""From the path and a pattern's name: the tokenizer, and what its config says beside the class."""


def _reader(path: Path) -> Read:
    if is_folder(path):
        if is_file(path / "vocab.json") and is_file(path / "merges.txt"):
            return _read_vocab_and_merges
        raise UserError(
            f"{path}: holds no vocab.json and merges.txt; name a tiktoken or SentencePiece file "
            "itself, and use a folder with tokenizer.json as it is"
        )
    if not is_file(path):
        raise UserError(f"{path}: no such file; give a folder or a tokenizer's file")
    return _read_tiktoken if _ranks(path) else _read_sentencepiece


def _append(tokenizer: Tokenizer, names: Sequence[str], end: str | None) -> str:
    """Append special tokens; returns the one that ends documents."""
    if not names and end is None and tokenizer.token_to_id(END_OF_TEXT) is None:
        names = [END_OF_TEXT]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
    return names[0] if names else end or END_OF_TEXT


def _byte_level(tokenizer: Tokenizer, pattern: str) -> Tokenizer:
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _read_vocab_and_merges(path: Path, pattern: str | None) -> tuple[Tokenizer, dict[str, Any]]:
    config = (
        _json(path / "tokenizer_config.json") if is_file(path / "tokenizer_config.json") else {}
    )
    named = config.get("tokenizer_class", "GPT2Tokenizer")
    pattern = pattern or _PATTERN_OF_CLASS.get(named)
    if pattern is None:
        raise UserError(
            f"{path}: how {named} splits text isn't known; say it with --pattern, one of "
            f"{', '.join(sorted(PATTERNS))}"
        )
    if config.get("add_prefix_space"):
        raise UserError(f"{path}: add_prefix_space isn't supported; set it to false")
    model = models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt"))
    tokenizer = _byte_level(Tokenizer(model), pattern)
    if pattern == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    added = config.get("added_tokens_decoder", {})
    for number, token in sorted(added.items(), key=lambda item: int(item[0])):
        flags = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word")}
        special = bool(token.get("special"))
        word = AddedToken(
            token["content"], special=special, normalized=bool(token.get("normalized")), **flags
        )
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([word])
        if tokenizer.token_to_id(token["content"]) != int(number):
            raise UserError(
                f"{path}: tokenizer_config.json gives {token['content']!r} the id {number}, where "
                f"the vocabulary has {tokenizer.token_to_id(token['content'])}: ids with gaps "
                "can't be imported"
            )
    kept = ("eos_token", "bos_token", "pad_token", "unk_token", "chat_template", "model_max_length")
    names = {key: _content(config[key]) for key in kept if config.get(key) is not None}
    return tokenizer, names


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) and "content" in token else token


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: can't be read: {error}; fetch it again") from None
    return content if isinstance(content, dict) else {}


def _ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a tiktoken file; empty if it is none."""
    ranks: dict[bytes, int] = {}
    for line in read_regular(path, MOST_BYTES).splitlines():
        try:
            encoded, rank = line.split()
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            return {}
    return ranks


def _read_tiktoken(path: Path, pattern: str | None) -> tuple[Tokenizer, dict[str, Any]]:
    ranks = _ranks(path)
    if pattern is None:
        raise UserError(
            f"{path}: a tiktoken file doesn't say how text is split into words; say it with "
            f"--pattern, one of {', '.join(sorted(PATTERNS))}"
        )
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(f"{path}: lacks tokens of single bytes; fetch it again")
    characters = {byte: character for character, byte in byte_of_character().items()}

    def word(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    halves = (_last_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__))
    merges = [(word(pair[0]), word(pair[1])) for pair in halves if pair is not None]
    vocab = {word(token): rank for token, rank in ranks.items()}
    # tiktoken takes a word that is a token as a whole, whatever its merges make of it.
    return _byte_level(Tokenizer(models.BPE(vocab, merges, ignore_merges=True)), pattern), {}


def _last_parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that a token is merged from, alone or in any word; None if it never is."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        merged = [ranks.get(first + second) for first, second in pairwise(parts)]
        lowest = min((rank for rank in merged if rank is not None), default=None)
        if lowest is None:
            return None
        index = merged.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _read_sentencepiece(path: Path, pattern: str | None) -> tuple[Tokenizer, dict[str, Any]]:
    if pattern is not None:
        raise UserError(f"{path}: a SentencePiece model splits text by itself; leave --pattern out")
    needs_sentencepiece(path)
    return from_sentencepiece(path, read_regular(path, MOST_BYTES))


def needs_sentencepiece(what: object) -> None:
    """Refuse to go on without the package.

    Raises:
        UserError: it isn't installed.
    """
    if importlib.util.find_spec("sentencepiece") is None:
        raise UserError(
            f"{what}: SentencePiece models need a package more: pip install 'triax[sentencepiece]'"
        )


def from_sentencepiece(path: Path, content: bytes) -> tuple[Tokenizer, dict[str, Any]]:
    """The same ids as a SentencePiece model's, and the names of its special tokens by role.

    Args:
        path: for messages.
        content: of the model's file.

    Raises:
        UserError: it is no such model, or its ids can't be had.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto = messages.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(content)
        original = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:  # of two C++ libraries, without a common class
        raise UserError(f"{path}: neither a tiktoken nor a SentencePiece file: {error}") from None
    tokenizer = _from_proto(path, proto)
    _compare(path, tokenizer, original)
    names = {
        f"{role}_token": original.id_to_piece(number)
        for role in ("bos", "eos", "unk", "pad")
        if (number := getattr(original, f"{role}_id")()) >= 0
    }
    return tokenizer, names


def _from_proto(path: Path, proto: Any) -> Tokenizer:
    trainer, normal = proto.trainer_spec, proto.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    lowest = min(score for _, score in pieces)
    if trainer.model_type == _UNIGRAM:
        scores = [
            (piece.piece, piece.score if piece.type in _OF_TEXT else lowest - _NEVER_CHOSEN)
            for piece in proto.pieces
        ]
        model: Any = models.Unigram(scores, trainer.unk_id, byte_fallback=trainer.byte_fallback)
    elif trainer.model_type == _BPE:
        model = models.BPE(
            {piece: number for number, (piece, _) in enumerate(pieces)},
            _merges_by_score(pieces),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise UserError(
            f"{path}: a SentencePiece model of words or characters; expected BPE or Unigram"
        )
    tokenizer = Tokenizer(model)
    steps: list[Any] = []
    if normal.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normal.precompiled_charsmap))
    if normal.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normal.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    steps.append(normalizers.Replace(" ", "▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if normal.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for piece in proto.pieces:
        if piece.type in (_CONTROL, _USER_DEFINED):
            special = piece.type == _CONTROL
            word = AddedToken(piece.piece, special=special, normalized=False)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([word])
    return tokenizer


def _merges_by_score(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """All pairs of pieces that are a piece together, the highest score of what they make first:
    SentencePiece merges any such pair."""
    scores = dict(pieces)
    merges = [
        (score, piece[:cut], piece[cut:])
        for piece, score in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: -merge[0])
    return [(first, second) for _, first, second in merges]


def _compare(path: Path, tokenizer: Tokenizer, original: Any) -> None:
    """Hold what was made of a SentencePiece model to its own library."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True  # as SentencePiece, which takes control tokens for text
    known = all(original.piece_to_id(character) != original.unk_id() for character in _SPELLED)
    for text in (*_TRIALS, _SPELLED) if known else _TRIALS:
        expected, found = original.encode(text), plain.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise UserError(
                f"{path}: `tokenizers` can't encode as this SentencePiece model does: {text!r} "
                f"gives {found[:12]} instead of {expected[:12]}; a model trained with "
                "--normalization_rule_name=identity --remove_extra_whitespaces=false works"
            )
