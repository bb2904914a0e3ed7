"""Tokens' bytes add up to those of the text that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from triax.common.tokens import IGNORE_INDEX
from triax.data.prepare.token_bytes import target_bytes, token_bytes
from triax.data.prepare.tokenizer import train_tokenizer

TEXTS = ("plain words, twice twice", "naïve — 漢字 and 🦊", " \n\t spaces  ")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "a.txt").write_text("\n".join(TEXTS) * 20)
    return Tokenizer.from_file(str(train_tokenizer([str(folder / "a.txt")], 320, folder / "out")))


def sentencepiece() -> Tokenizer:
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "é", "b"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab, [("▁", "a")] if "a" in vocab else [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_they_are_the_text_s(byte_level: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, sentencepiece()):
        sizes = token_bytes(tokenizer, 400)
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        assert target_bytes(sizes, ids) == len(text.encode())


def test_what_stands_for_no_text_has_none(byte_level: Tokenizer) -> None:
    sizes = token_bytes(byte_level, 400)
    assert sizes[0] == 0 and sizes[399] == 0
    assert target_bytes(sizes, np.array([[IGNORE_INDEX, 0], [5, IGNORE_INDEX]])) == 1
