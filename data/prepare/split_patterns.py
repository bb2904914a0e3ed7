"""How byte-level BPE tokenizers split text into words, and the alphabet in which they write bytes.

Each pattern matches any text from its first to its last character.
"""

from __future__ import annotations

_LETTERS, _NUMBERS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # also Llama 3
    "cl100k": rf"{_ENDINGS}|{_LETTERS}|{_NUMBERS}|{_REST}",
    # also Qwen 3
    "qwen2": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}",
    "o200k": "|".join(
        (
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?",
            _NUMBERS,
            _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1),
        )
    ),
}
"""By the name of the vocabulary that it came with."""
GPT2_AS_PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The same words as PATTERNS["gpt2"], as older files write it."""


def byte_of_character() -> dict[str, int]:
    """The characters by which a byte-level vocabulary writes bytes: printable ones for themselves,
    the others, in order, from U+0100 on (as GPT-2 does)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }
