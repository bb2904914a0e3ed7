"""How lm-eval's texts become tokens: as its `hf` model cuts them with the exported tokenizer."""

from __future__ import annotations

from tokenizers import Tokenizer

from triax.data.prepare.document_tokens import DocumentTokens, special_tokens
from triax.data.prepare.tokenizer import library_errors


class HarnessTokens:
    """The part of lm-eval's `TemplateLM` that knows a tokenizer.

    Args:
        tokenizer: cuts texts.
        folder: where it lies.
        documents: what ends and begins a text.
    """

    backend = "causal"

    def __init__(self, tokenizer: Tokenizer, folder: str, documents: DocumentTokens) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        begin = documents.begin or special_tokens(folder).get("bos_token") or documents.end
        self._begin, self._end = begin, documents.end
        self._folder = folder

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self._end.id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing else comes before."""
        return self._begin.id

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer lies."""
        return self._folder

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids; with what the tokenizer puts around texts unless the text begins so."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._begin.name)
        with library_errors("the tokenizer"):
            return list(self._tokenizer.encode(string, add_special_tokens=add_special_tokens).ids)
