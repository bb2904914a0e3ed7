"""A checkpoint's model and tokenizer belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from triax.common.errors import UserError
from triax.inference.load import ModelFolder
from triax.models.families import model_config


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(tmp_path: Path) -> None:
    """Two tokens, but with a gap between their ids."""
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 20}, unk_token="a"))
    gaps.save(str(tmp_path / "tokenizer.json"))
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 16}
    small, large = (
        ModelFolder(
            tmp_path, model_config(**shape, vocab_size=size), lambda _: None, str(tmp_path), None
        )
        for size in (20, 21)
    )
    assert large.tokenizer().encode("b").ids == [20]
    with pytest.raises(UserError, match="has 21 tokens"):
        small.tokenizer()
