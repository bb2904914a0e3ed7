"""What a person should know of prepared data: a split that isn't as asked for, or isn't one."""

from __future__ import annotations

from triax.data.record import PreparedData

_FAR = 2.0
"""A share that is so many times the one asked for, or one of so many parts of it."""


def findings(data: PreparedData) -> list[str]:
    """Sentences on a finished preparation, none if all is as asked for."""
    return [*_far_share(data), *_shared_documents(data)]


def _far_share(data: PreparedData) -> list[str]:
    wanted = data.settings.validation_fraction
    share = data.validation.tokens / max(1, data.train.tokens + data.validation.tokens)
    if wanted == 0 or (
        wanted / _FAR <= share <= wanted * _FAR and (1 - wanted) / _FAR <= 1 - share
    ):
        return []
    return [
        f"validation has {share:.2%} of the tokens ({data.validation.tokens:,} in "
        f"{data.validation.documents:,} documents), though {wanted:.2%} was asked for: a few long "
        "documents decide; prepare the data anew with another fraction, or with long documents "
        "divided"
    ]


def _shared_documents(data: PreparedData) -> list[str]:
    if not data.num_shared:
        return []
    return [
        f"{data.num_shared:,} of {data.validation.documents:,} validation documents stand in the "
        "training split too, word for word: the loss there is in part of text learned by heart; "
        "take duplicates out of the inputs to prevent it"
    ]
