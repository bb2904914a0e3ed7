"""Checks of a run's tokenizer and datasets against its config. Imports no torch.

Each is a check as `triax.launcher.checks.sections` describes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triax.common.errors import UserError
from triax.common.paths import expand, same_path
from triax.data.config import DataConfig, PrepareConfig
from triax.data.prepare.document_tokens import document_tokens, named_token
from triax.data.prepare.ensure import made_tokenizer, preparation_problems
from triax.data.prepare.findings import findings
from triax.data.prepare.inputs import resolve, resolve_all
from triax.data.prepare.tokenizer import load_tokenizer, tokenizer_fingerprint, vocabulary_size
from triax.data.read.digest import shard_digest
from triax.data.read.opening import cache_of, open_set
from triax.data.read.shards import find_shards
from triax.data.record import RECORD, PreparedData, load_prepared
from triax.launcher.config.problems import Problem
from triax.models.config import ModelConfig
from triax.training.config import BatchConfig


def tokens_per_step(batch: BatchConfig, data: DataConfig) -> int:
    """Tokens of one update, over all processes."""
    return batch.global_batch_size * data.seq_len


def tokenizer_fits(model: ModelConfig, data: DataConfig) -> Iterator[Problem]:
    """The model has an embedding for every token that the tokenizer can give."""
    if data.prepare is not None and data.prepare.vocab_size > model.vocab_size:
        yield Problem(
            "data.prepare.vocab_size",
            f"{data.prepare.vocab_size:,} is more than model.vocab_size, {model.vocab_size:,}; "
            "make them equal",
        )
    if data.tokenizer is None:
        return
    try:
        size = vocabulary_size(load_tokenizer(data.tokenizer))
    except UserError as error:
        file = Path(data.tokenizer) / "tokenizer.json"
        if exists(Path(data.tokenizer)) and (
            exists(file) or not _will_be_made(data.tokenizer, data.prepare, "tokenizer")
        ):
            yield Problem("data.tokenizer", str(error))
        elif not _will_be_made(data.tokenizer, data.prepare, "tokenizer"):
            message = f"{file}: no such file; `triax tokenizer train` makes it"
            yield Problem("data.tokenizer", message)
        return
    if size > model.vocab_size:
        yield Problem(
            "model.vocab_size",
            f"{model.vocab_size:,} is less than the {size:,} tokens of {data.tokenizer}; "
            f"use at least {size}, or the tokenizer that belongs to this model",
        )


def one_tokenizer(data: DataConfig) -> Iterator[Problem]:
    """The tokenizer that the preparation makes is the one that the run names."""
    if data.prepare is None or data.tokenizer is None:
        return
    made = made_tokenizer(data.prepare)
    if same_path(made, expand(data.tokenizer)):
        return
    try:
        is_copy = tokenizer_fingerprint(made) == tokenizer_fingerprint(expand(data.tokenizer))
    except (UserError, OSError):
        is_copy = False
    if not is_copy:
        yield Problem(
            "data.tokenizer",
            f"{data.tokenizer}, but data.prepare makes the run's tokenizer in {made} and uses "
            "that; name it here, or make the shards with yours by `triax data prepare "
            "--tokenizer` and leave [data.prepare] out",
        )


def preparation_goes_on(data: DataConfig) -> Iterator[Problem]:
    """What `data.prepare` finds in its folder is what it would make there."""
    if data.prepare is None:
        return
    try:
        for path, message in preparation_problems(data.prepare):
            yield Problem(path, message)
    except (UserError, OSError) as error:
        yield Problem("data.prepare.output", str(error))


def named_tokens_are_there(data: DataConfig) -> Iterator[Problem]:
    """The tokens that are named for a document's end and beginning are in the vocabulary."""
    if data.tokenizer is None or (data.end_of_text, data.begin_of_text) == (None, None):
        return
    try:
        load_tokenizer(data.tokenizer)
    except UserError:
        return  # not there yet, or said already
    try:
        document_tokens(data.tokenizer, data.end_of_text)
    except UserError as error:
        named = data.end_of_text is not None
        yield Problem("data.end_of_text" if named else "data", _without_role(error))
    try:
        if data.begin_of_text is not None:
            named_token(data.tokenizer, "begin_of_text", data.begin_of_text)
    except UserError as error:
        yield Problem("data.begin_of_text", _without_role(error))


def _without_role(error: UserError) -> str:
    return str(error).removeprefix("end_of_text: ").removeprefix("begin_of_text: ")


def inputs_are_there(data: DataConfig) -> Iterator[Problem]:
    """What the data is to be made from can't be found here; the job's machines may have it."""
    if data.prepare is None or exists(expand(data.prepare.output) / RECORD):
        return
    num_problems = 0
    for number, text in enumerate(data.prepare.inputs):
        try:
            resolve(text)
        except UserError as error:
            num_problems += 1
            yield Problem(f"data.prepare.inputs.{number}", str(error))
    if num_problems == 0 and len(data.prepare.inputs) > 1:  # else nothing is given twice
        try:
            resolve_all(data.prepare.inputs)
        except UserError as error:
            yield Problem("data.prepare.inputs", str(error))


def shards_are_sane(model: ModelConfig, data: DataConfig) -> Iterator[Problem]:
    """Every dataset is there, whole and long enough, unless the run is about to prepare it."""
    for path, prefix, made_as in _datasets(data):
        try:
            open_set(data, prefix, model.vocab_size)
        except (UserError, OSError) as error:
            if not _will_be_made(prefix, data.prepare, made_as):
                yield Problem(path, str(error))


def vocabulary_holds_data(model: ModelConfig, data: DataConfig) -> Iterator[Problem]:
    """The model has an embedding for every token that `data.json` says the shards may hold."""
    if data.tokenizer is not None:
        return  # `tokenizer_fits` compares it, and `made_with_this_tokenizer` the data with it
    for _, prefix, _ in _datasets(data):
        try:
            prepared = load_prepared(Path(prefix).parent)
        except UserError:
            continue  # `made_with_this_tokenizer` says it
        if prepared is not None and prepared.vocab_size > model.vocab_size:
            yield Problem(
                "model.vocab_size",
                f"{model.vocab_size:,} is less than the {prepared.vocab_size:,} tokens of the "
                f"tokenizer that made {prefix}; use at least {prepared.vocab_size}",
            )
            return


def sources_differ(data: DataConfig) -> Iterator[Problem]:
    """No shard is read through two sources, whatever their paths are."""
    if len(data.sources) == 1:
        return
    first_with: dict[str, str] = {}
    cache = cache_of(data)
    for number, source in enumerate(data.sources):
        try:
            digests = [shard_digest(prefix) for prefix in find_shards(source.path, cache)]
        except (UserError, OSError):
            continue  # `shards_are_sane` says it
        others = {first_with.setdefault(digest, source.path) for digest in digests}
        for other in sorted(others - {source.path}):
            yield Problem(
                f"data.sources.{number}.path",
                f"{source.path} holds the same data as {other}, which would be read through "
                "both: give it once, with its whole weight",
            )


def _datasets(data: DataConfig) -> Iterator[tuple[str, str, str]]:
    """Config path, prefix and what `data.prepare` calls it, of every dataset of the run."""
    for number, source in enumerate(data.sources):
        yield f"data.sources.{number}.path", source.path, "train"
    if data.validation is not None:
        yield "data.validation", data.validation, "validation"


def _will_be_made(path: str, prepare: PrepareConfig | None, name: str) -> bool:
    """Whether the run's preparation, which isn't finished yet, makes this."""
    if prepare is None or not same_path(expand(path), expand(prepare.output) / name):
        return False
    return not exists(expand(prepare.output) / RECORD)


def made_with_this_tokenizer(data: DataConfig) -> Iterator[Problem]:
    """What `triax data prepare` noted beside the shards names the tokenizer of the config."""
    for path, prefix, _ in _datasets(data):
        folder = Path(prefix).parent
        try:
            prepared = load_prepared(folder)
        except UserError as error:
            yield Problem(path, str(error))
            continue
        if prepared is None or data.tokenizer is None:
            continue
        try:
            found = tokenizer_fingerprint(data.tokenizer)
        except (UserError, OSError):
            continue  # `tokenizer_fits` says it
        if prepared.settings.tokenizer_fingerprint != found:
            yield Problem(
                path,
                f"{prefix} was made with another tokenizer than data.tokenizer, {data.tokenizer}; "
                "use that one, or prepare the data anew",
            )
        elif prepared.settings.chat is None:  # a template writes what conversations end with
            yield from _other_document_tokens(prefix, prepared, data)


def _other_document_tokens(
    prefix: str, prepared: PreparedData, data: DataConfig
) -> Iterator[Problem]:
    """The run and its data agree on where a document ends and begins."""
    assert data.tokenizer is not None
    try:
        tokens = document_tokens(data.tokenizer, data.end_of_text, data.begin_of_text)
    except UserError:
        return  # said already
    tokenizer = load_tokenizer(data.tokenizer)
    wanted = {"end_of_text": tokens.end, "begin_of_text": tokens.begin}
    made = {
        "end_of_text": prepared.end_of_text_id,
        "begin_of_text": prepared.settings.begin_of_text_id,
    }
    for name, token in wanted.items():
        number = made[name]
        if number == (None if token is None else token.id):
            continue
        there = "nothing" if number is None else repr(tokenizer.id_to_token(number))
        here = "nothing" if token is None else repr(token.name)
        remedy = "leave it out" if number is None else f"set data.{name} = {there}"
        where = "end" if name == "end_of_text" else "beginning"
        yield Problem(
            f"data.{name}",
            f"{prefix} was made with {there} at a document's {where}, this run takes {here} for "
            f"it; {remedy}, or prepare the data anew",
        )


def validation_is_as_wanted(data: DataConfig) -> Iterator[Problem]:
    """The validation data is about the share of the text that was asked for, and unseen."""
    if data.validation is None:
        return
    try:
        prepared = load_prepared(Path(data.validation).parent)
    except UserError:
        return  # `made_with_this_tokenizer` says it
    for finding in [] if prepared is None else findings(prepared):
        yield Problem("data.validation", finding)


def exists(path: Path) -> bool:
    """Whether something is there; no for names that no file can have, or out of our reach."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
