"""`[data.prepare]`: makes what a run reads, as far as it is missing, or says why it can't.

What the tokenizer and the shards were made from is kept beside them and compared before any
work, so that nothing is made from what is no longer wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from triax.common.errors import UserError
from triax.common.files import is_file, make_folder
from triax.common.paths import expand
from triax.data.config import PrepareConfig
from triax.data.prepare.corpus import prepare
from triax.data.prepare.document_tokens import document_tokens
from triax.data.prepare.findings import findings
from triax.data.prepare.inputs import inputs_fingerprint
from triax.data.prepare.tokenizer import (
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)
from triax.data.record import (
    PreparedData,
    TokenizerOrigin,
    load_prepared,
    load_progress,
    load_tokenizer_origin,
    save_tokenizer_origin,
)


def made_tokenizer(config: PrepareConfig) -> Path:
    """The folder of the tokenizer that a preparation makes and uses."""
    return expand(config.output) / "tokenizer"


def ensure_prepared(
    config: PrepareConfig,
    *,
    end_of_text: str | None = None,
    begin_of_text: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> PreparedData:
    """Make `config.output/tokenizer` and the shards beside it, as far as they are missing.

    For one process: others of the same run wait for it. Data that is finished is not compared
    with the inputs' files, which may be gone by then.

    Args:
        end_of_text: as `prepare` takes it.
        begin_of_text: likewise.
        report: called with a line when a step begins.

    Raises:
        UserError: as `train_tokenizer` and `prepare`; or what is there was made otherwise.
    """
    for path, problem in preparation_problems(config):
        raise UserError(f"{path}: {problem}")
    output = expand(config.output)
    data = load_prepared(output)
    if data is not None:
        _refuse_other_ends(config, data, end_of_text, begin_of_text)
        return data
    _ensure_tokenizer(config, report)
    report(f"tokenizing {', '.join(config.inputs)} into {output}")
    data = prepare(
        config.inputs,
        made_tokenizer(config),
        output,
        validation_fraction=config.validation_fraction,
        text_field=config.text_field,
        end_of_text=end_of_text,
        begin_of_text=begin_of_text,
    )
    for finding in findings(data):
        report(f"warning: {finding}")
    return data


def _refuse_other_ends(
    config: PrepareConfig, data: PreparedData, end_of_text: str | None, begin_of_text: str | None
) -> None:
    tokens = document_tokens(made_tokenizer(config), end_of_text, begin_of_text)
    begin_id = None if tokens.begin is None else tokens.begin.id
    if (data.end_of_text_id, data.settings.begin_of_text_id) != (tokens.end.id, begin_id):
        raise UserError(
            f"data.end_of_text, data.begin_of_text: {config.output} was prepared with other tokens "
            "around its documents; change them back, or set another data.prepare.output"
        )


def preparation_problems(config: PrepareConfig) -> Iterator[tuple[str, str]]:
    """What is there already and was made otherwise: a config path and what is wrong with it.

    Raises:
        UserError: a record of what is there is damaged.
    """
    output = expand(config.output)
    data = load_prepared(output)
    if data is not None:
        made = data.settings.model_dump() | {"vocab_size": data.vocab_size}
        yield from _differences(config, made, f"{config.output} was prepared")
        yield from _swapped_tokenizer(config, data)
        return
    progress = load_progress(output)
    if progress is not None:
        settings = progress.settings.model_dump()
        yield from _differences(config, settings, f"{config.output} was begun")
    tokenizer = made_tokenizer(config)
    if is_file(tokenizer / "tokenizer.json"):
        yield from _stale_tokenizer(config, tokenizer)


def _differences(
    config: PrepareConfig, made: dict[str, object], how: str
) -> Iterator[tuple[str, str]]:
    for name in ("inputs", "text_field", "validation_fraction", "vocab_size"):
        wanted = getattr(config, name)
        if name in made and made[name] != wanted:
            yield (
                f"data.prepare.{name}",
                f"{wanted!r}, but {how} with {made[name]!r}; change it back, set another "
                "data.prepare.output, or delete that folder",
            )


def _swapped_tokenizer(config: PrepareConfig, data: PreparedData) -> Iterator[tuple[str, str]]:
    tokenizer = made_tokenizer(config)
    try:
        found = tokenizer_fingerprint(tokenizer)
    except UserError as error:
        yield "data.prepare.output", str(error)
        return
    if found != data.settings.tokenizer_fingerprint:
        yield (
            "data.prepare.output",
            f"{tokenizer} is not the tokenizer that made the shards in {config.output}; "
            "put it back, or delete that folder to prepare it anew",
        )


def _stale_tokenizer(config: PrepareConfig, tokenizer: Path) -> Iterator[tuple[str, str]]:
    try:
        size = vocabulary_size(load_tokenizer(tokenizer))
    except UserError as error:
        yield "data.prepare.output", str(error)
        return
    made: dict[str, object] = {"vocab_size": size}
    origin = _origin_of(tokenizer)
    if origin is not None:
        made |= origin.model_dump()
    yield from _differences(config, made, f"{tokenizer} was made")
    if origin is None or origin.inputs != config.inputs:
        return
    try:
        found = inputs_fingerprint(config.inputs)
    except UserError:
        return  # inputs that aren't here are another check's
    if found != origin.inputs_fingerprint:
        yield (
            "data.prepare.inputs",
            f"their files have changed since {tokenizer} was made from them; "
            f"delete {config.output} to make it anew, or put the files back",
        )


def _origin_of(tokenizer: Path) -> TokenizerOrigin | None:
    """What a tokenizer was made from; None if nothing says so, or says it of another one."""
    origin = load_tokenizer_origin(tokenizer)
    if origin is None or origin.tokenizer_fingerprint in (None, tokenizer_fingerprint(tokenizer)):
        return origin
    return None


def _ensure_tokenizer(config: PrepareConfig, report: Callable[[str], None]) -> None:
    tokenizer = made_tokenizer(config)
    if is_file(tokenizer / "tokenizer.json"):
        made = "" if _origin_of(tokenizer) else ", though nothing there says what it was made from"
        report(f"using the tokenizer in {tokenizer}{made}")
        return
    report(f"training a tokenizer of {config.vocab_size:,} tokens in {tokenizer}")
    origin = TokenizerOrigin(
        inputs=config.inputs,
        inputs_fingerprint=inputs_fingerprint(config.inputs),
        text_field=config.text_field,
        vocab_size=config.vocab_size,
    )
    # Written before, for whoever finds the tokenizer after a crash, and with its hash once known.
    make_folder(tokenizer)
    save_tokenizer_origin(tokenizer, origin)
    train_tokenizer(config.inputs, config.vocab_size, tokenizer, config.text_field)
    found = tokenizer_fingerprint(tokenizer)
    save_tokenizer_origin(tokenizer, origin.model_copy(update={"tokenizer_fingerprint": found}))
