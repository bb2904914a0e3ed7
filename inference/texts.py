"""Prompts to texts: what stands before a prompt, where a text ends, characters over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from triax.data.prepare.document_tokens import DocumentTokens
from triax.data.prepare.tokenizer import decode, library_errors
from triax.inference.generate import NewToken, generate_batch
from triax.inference.sampling import Sampling
from triax.inference.team import Team
from triax.models.layers.transformer import Transformer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character that isn't whole yet is decoded as."""
_TOKENS_BEFORE = 64


@dataclass(frozen=True)
class Writer:
    """A model with its tokenizer, and how texts begin and end."""

    model: Transformer
    tokenizer: Tokenizer
    tokens: DocumentTokens
    context: int
    """The model sees so many tokens at most."""
    sampling: Sampling
    stop_tokens: tuple[int, ...] = ()
    """End a text as `tokens.end` does."""
    stop_strings: tuple[str, ...] = ()
    """End a text before them."""
    team: Team | None = None
    """Who has the model's other parts, and writes the same texts."""

    def encode(self, prompt: str) -> list[int]:
        """The prompt's own tokens."""
        with library_errors("the tokenizer"):
            return list(self.tokenizer.encode(prompt, add_special_tokens=False).ids)

    def begin(self, written: Sequence[int]) -> list[int]:
        """What the model is shown: as in training, what begins a document stands before the
        prompt's tokens, or without a prompt the end of the document before."""
        return self.tokens.begun(written)

    def write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int]
    ) -> Iterator[list[Text]]:
        """Yield the texts so far after each step, the same objects, until all have ended.

        Args:
            prompts: each prompt's own tokens, from `encode`.
            max_new_tokens: upper bound of what is added to each.
            seeds: of each text's draws.

        Raises:
            UserError: the model gives nothing finite.
        """
        texts = [Text(self.tokenizer, list(prompt), self.stop_strings) for prompt in prompts]
        steps = generate_batch(
            self.model,
            [self.begin(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            context=self.context,
            sampling=self.sampling,
            seeds=seeds,
            stop_tokens={self.tokens.end.id, *self.stop_tokens},
            team=self.team,
        )
        yield texts
        for step in steps:
            for text, new in zip(texts, step, strict=True):
                text.take(new)
            yield texts
            if all(text.is_stopped for text in texts):
                break
        for text in texts:
            text.finish(max_new_tokens)


@dataclass
class Text:
    """One text as it grows."""

    tokenizer: Tokenizer
    tokens: list[int]
    """The prompt's own and the new ones."""
    stop_strings: tuple[str, ...]
    new: list[NewToken] = field(default_factory=list)
    is_stopped: bool = False
    finish_reason: str | None = None
    """`stop` where the model or a stop string ended the text, `length` where there was no room."""
    added: str = ""
    """What can be shown of the new text: whole characters, and nothing that may turn out to begin
    a stop string."""
    _prompt_end: list[int] = field(init=False)
    _before: str = field(init=False)

    def __post_init__(self) -> None:
        # As much of a prompt, however long, as what follows it may be spelled by.
        self._prompt_end = self.tokens[-_TOKENS_BEFORE:]
        self._before = decode(self.tokenizer, self._prompt_end)

    def take(self, token: NewToken | None) -> None:
        """Add a step's token; None where the text has ended."""
        if self.is_stopped or token is None:
            self.is_stopped = True
            return
        self.new.append(token)
        self.tokens.append(token.token)
        text = self._decoded()
        places = [text.find(stop) for stop in self.stop_strings if stop in text]
        if places:
            self.is_stopped, self.added = True, text[: min(places)]
        elif not text.endswith(_UNFINISHED):
            self.added = text[: len(text) - self._held_back(text)]

    def finish(self, max_new_tokens: int) -> None:
        """There are no more tokens: show what was held back."""
        cut_short = any(stop in self._decoded() for stop in self.stop_strings)
        if not cut_short:
            self.added = self._decoded()
        self.finish_reason = "stop" if cut_short or len(self.new) < max_new_tokens else "length"

    @property
    def log_prob(self) -> float:
        """Of the new tokens together, in nats, under the model's own distribution."""
        return sum(new.log_prob for new in self.new)

    def _decoded(self) -> str:
        new = [token.token for token in self.new]
        whole = decode(self.tokenizer, [*self._prompt_end, *new])
        return whole[len(self._before) :]

    def _held_back(self, text: str) -> int:
        """Characters at the end that may begin a stop string."""
        longest = max(map(len, self.stop_strings), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stop_strings):
                return size
        return 0
