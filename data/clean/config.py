"""A recipe: the steps of a cleaning in their order, each with its thresholds. Imports no torch.

A threshold's default is the published one, and a key is named for the rule that it belongs to.
`off` in a table of quality rules switches rules off by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, field_validator

from triax.common.paths import PathField
from triax.common.section import Section

Share = Field(ge=0, le=1)
GOPHER_RULES = (
    "words",
    "word_length",
    "hashes",
    "ellipses",
    "bullet_lines",
    "ellipsis_lines",
    "alpha_words",
    "stop_words",
)
REPETITION_RULES = (
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    "duplicate_lines",
    "duplicate_line_characters",
    "top_ngrams",
    "duplicate_ngrams",
)
C4_RULES = (
    "long_words",
    "citations",
    "terminal_punctuation",
    "short_lines",
    "lorem_ipsum",
    "javascript",
    "curly_bracket",
    "policy",
    "sentences",
)
FINEWEB_RULES = (
    "line_punctuation",
    "short_lines",
    "duplicate_line_characters",
    "newlines",
)


class StepConfig(Section):
    """One step. `step` says its kind, `name` what the report calls it."""

    step: str
    name: str | None = None


class NormaliseConfig(StepConfig):
    """Mend mojibake and odd characters (ftfy)."""

    unicode: Literal["NFC", "NFKC", "as_it_is"] = "NFC"


class LanguageConfig(StepConfig):
    """Say each document's language and keep some."""

    keep: tuple[str, ...] = ()
    """ISO 639-1 codes, as `en`; none keeps all, and only notes the language."""
    min_probability: float = Field(0.65, ge=0, le=1)
    """FineWeb's, there of fastText."""
    max_characters: int = Field(4000, ge=100)
    """Of the document's beginning, from which the language is told."""


class _RulesConfig(StepConfig):
    off: tuple[str, ...] = ()
    """Rules that are not asked."""


class GopherConfig(_RulesConfig):
    """The quality rules of Gopher (Rae et al. 2021, appendix A.1.1)."""

    min_words: int = Field(50, ge=0)
    max_words: int = Field(100_000, ge=1)
    min_mean_word_length: float = Field(3.0, ge=0)
    max_mean_word_length: float = Field(10.0, gt=0)
    max_symbols_per_word: float = Field(0.1, ge=0)
    max_bullet_lines: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1)
    min_alpha_words: float = Field(0.8, ge=0, le=1)
    min_stop_words: int = Field(2, ge=0, le=8)

    @field_validator("off")
    @classmethod
    def _known(cls, off: tuple[str, ...]) -> tuple[str, ...]:
        return known_rules(off, GOPHER_RULES)


class RepetitionConfig(_RulesConfig):
    """The repetition rules of Gopher (table A1)."""

    max_duplicate_lines: float = Field(0.3, ge=0, le=1)
    max_duplicate_paragraphs: float = Field(0.3, ge=0, le=1)
    max_duplicate_line_characters: float = Field(0.2, ge=0, le=1)
    max_duplicate_paragraph_characters: float = Field(0.2, ge=0, le=1)
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Most of the characters that the most frequent n-gram may take, n from 2."""
    duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Most of the characters in n-grams that stood before, n from 5."""

    @field_validator("off")
    @classmethod
    def _known(cls, off: tuple[str, ...]) -> tuple[str, ...]:
        return known_rules(off, REPETITION_RULES)


class C4Config(_RulesConfig):
    """The rules of C4 (Raffel et al. 2020, section 2.2, and its published code)."""

    min_sentences: int = Field(5, ge=0)
    min_words_per_line: int = Field(3, ge=0)
    max_word_length: int = Field(1000, ge=1)

    @field_validator("off")
    @classmethod
    def _known(cls, off: tuple[str, ...]) -> tuple[str, ...]:
        return known_rules(off, C4_RULES)


class FineWebConfig(_RulesConfig):
    """The rules that FineWeb adds (Penedo et al. 2024, section 3.6)."""

    min_line_punctuation: float = Field(0.12, ge=0, le=1)
    max_short_lines: float = Field(0.67, ge=0, le=1)
    short_line_length: int = Field(30, ge=0)
    max_duplicate_line_characters: float = Field(0.01, ge=0, le=1)
    max_newlines_per_word: float = Field(0.3, ge=0)

    @field_validator("off")
    @classmethod
    def _known(cls, off: tuple[str, ...]) -> tuple[str, ...]:
        return known_rules(off, FINEWEB_RULES)


class PiiConfig(StepConfig):
    """Put stand-ins in the place of what belongs to persons."""

    kinds: tuple[Literal["email", "ip", "card"], ...] = ("email", "ip")


class BlockListConfig(StepConfig):
    """Drop documents that hold words of a list, or come from hosts of a list."""

    words: PathField | None = None
    """File of words or phrases, one a line; letter case doesn't count."""
    hosts: PathField | None = None
    """File of hosts, one a line; their subdomains count."""
    min_words: int = Field(1, ge=1)
    """Occurrences for which a document is dropped."""


class ExactConfig(StepConfig):
    """Drop what stood before, letter by letter."""

    unit: Literal["document", "paragraph", "line"] = "document"
    min_characters: int = Field(20, ge=1)
    """Shorter paragraphs and lines stay."""
    against: tuple[str, ...] = ()
    """INPUTs of an existing corpus, whose documents count as earlier ones."""


class NearConfig(StepConfig):
    """Drop near duplicates by MinHash and bands (Broder 1997; FineWeb's parameters)."""

    ngram: int = Field(5, ge=1, le=50)
    bands: int = Field(14, ge=1, le=256)
    rows: int = Field(8, ge=1, le=64)
    """Hashes in a band."""
    threshold: float = Field(0.0, ge=0, le=1)
    """Least share of equal hashes for which two of one band count; 0 means that a band is enough,
    as in FineWeb."""
    seed: int = Field(1, ge=0, lt=1 << 32)
    against: tuple[str, ...] = ()
    """INPUTs of an existing corpus, whose documents count as earlier ones."""


class SubstringsConfig(StepConfig):
    """Cut out stretches of text that stood before (Lee et al. 2022)."""

    tokens: int = Field(50, ge=2, le=1000)
    """Least length of a stretch: words with their punctuation, or characters of scripts without
    spaces. 50 is the paper's."""
    against: tuple[str, ...] = ()
    """INPUTs of an existing corpus, whose documents count as earlier ones."""


class ContaminationConfig(StepConfig):
    """Find documents that share word n-grams with evaluation sets."""

    sets: tuple[str, ...] = Field(min_length=1)
    """INPUTs that hold the evaluation texts."""
    ngram: int = Field(13, ge=1, le=100)
    """Words; 13 as in GPT-3 (Brown et al. 2020, appendix C)."""
    min_shared: int = Field(1, ge=1)
    """Different n-grams for which a document counts as contaminated."""
    action: Literal["drop", "tag"] = "drop"


class FunctionConfig(StepConfig):
    """Any Python function: `def f(document) -> bool | str | None`."""

    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """`module:name`, importable in the worker processes. False or a reason drops the document;
    the document may be changed."""


KINDS: Mapping[str, type[StepConfig]] = MappingProxyType(
    {
        "normalise": NormaliseConfig,
        "language": LanguageConfig,
        "gopher": GopherConfig,
        "gopher_repetition": RepetitionConfig,
        "c4": C4Config,
        "fineweb": FineWebConfig,
        "pii": PiiConfig,
        "block_list": BlockListConfig,
        "exact_duplicates": ExactConfig,
        "near_duplicates": NearConfig,
        "repeated_substrings": SubstringsConfig,
        "contamination": ContaminationConfig,
        "function": FunctionConfig,
    }
)


class OutputConfig(Section):
    """How the kept documents are written, and in what pieces the work is done."""

    format: Literal["jsonl.zst", "jsonl.gz", "parquet"] = "jsonl.zst"
    tokenizer: PathField | None = None
    """A tokenizer's folder: the report counts its tokens beside documents and characters."""
    piece_characters: int = Field(8_000_000, ge=1000)
    """A piece of the work, and a file of the output, ends with the document that reaches them."""
    memory_mib: int = Field(512, ge=1)
    """For sorting hashes; beside it 8 bytes a document and some 40 bytes a character of each piece
    in work, one a worker."""


class Recipe(Section):
    """A whole recipe."""

    output: OutputConfig = OutputConfig()
    steps: tuple[StepConfig, ...]


def known_rules(off: tuple[str, ...], rules: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if each is a rule's."""
    unknown = [name for name in off if name not in rules]
    if unknown:
        raise ValueError(f"no rule is called {unknown[0]}; there are {', '.join(rules)}")
    return off
