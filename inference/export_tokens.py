"""What an exported tokenizer and model call the tokens that training put around documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triax.checkpoint.huggingface_tokenizer import TokenizerExport
from triax.data.prepare.document_tokens import (
    DocumentTokens,
    added_by_tokenizer,
    document_tokens,
    end_of_version_0_1,
    special_tokens,
)


def recorded_tokens(record: Mapping[str, Any], path: Path | str) -> DocumentTokens:
    """What stands where documents end and begin, as a checkpoint's record names it.

    Args:
        record: imported models name nothing, and the tokenizer says; runs of version 0.1 name
            nothing either, and ended documents by a fixed list.
        path: the tokenizer's folder or its `tokenizer.json`.

    Raises:
        UserError: the tokenizer is of no use, or lacks what is named.
    """
    names = record.get("document_tokens") or (record.get("config") or {}).get("data") or {}
    end = names.get("end_of_text")
    if "layout" in record and "document_tokens" not in record:
        end = end_of_version_0_1(path)
    return document_tokens(path, end, names.get("begin_of_text"))


def tokenizer_export(path: Path, tokens: DocumentTokens) -> TokenizerExport:
    """The tokenizer with the end of training as its `eos_token`.

    Generation ends with the tokenizer's own `eos_token` too, where that is another: a model that
    is tuned further may learn it. What begins a document, the end of the one before where nothing
    else does, is the `bos_token_id` that generation without a prompt begins with.

    Raises:
        UserError: the tokenizer is of no use.
    """
    own = special_tokens(path)
    ends = [tokens.end.id]
    if "eos_token" in own and own["eos_token"] != tokens.end:
        ends.append(own["eos_token"].id)
    ids: dict[str, int | list[int]] = {
        "bos_token_id": (tokens.begin or tokens.end).id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
    }
    if "pad_token" in own:
        ids["pad_token_id"] = own["pad_token"].id
    names = {"eos_token": tokens.end.name}
    if tokens.begin is not None:
        names["bos_token"] = tokens.begin.name
    return TokenizerExport(path, names, ids)


def unseen_by_training(path: Path, tokens: DocumentTokens) -> str | None:
    """A warning where the tokenizer puts around each text what training never saw there.

    Raises:
        UserError: the tokenizer is of no use.
    """
    before, after = added_by_tokenizer(path)
    seen = [] if tokens.begin is None else [tokens.begin.name]
    unseen = [
        f"{' '.join(found)} {where} each text"
        for found, where in ((before if before != seen else [], "before"), (after, "after"))
        if found
    ]
    if not unseen:
        return None
    begin = f"begins documents with {seen[0]}" if seen else "puts nothing before documents"
    return (
        f"warning: this tokenizer puts {' and '.join(unseen)}, but this model's training "
        f"{begin} and nothing behind prompts: tokenize with add_special_tokens=False, or train "
        "with data.begin_of_text"
    )
