"""The sections that describe training itself. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from triax.common.paths import PathField
from triax.common.quantities import (
    CountedOrZeroField,
    Duration,
    DurationField,
    ShareField,
    Unit,
    parse_count,
)
from triax.common.section import NonNegativeFp32, PositiveFp32, Section
from triax.models.description import Role


def _tokens(value: object) -> object:
    if value == "chinchilla":
        return value
    try:
        return parse_count(value)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f'expected "chinchilla" or a count such as "20B", got {value!r}') from None


class BudgetConfig(Section):
    """`[budget]`: how long to train, in tokens (sequences x seq_len, masked ones included)."""

    tokens: Annotated[Literal["chinchilla"] | int, BeforeValidator(_tokens)] = "chinchilla"
    """Rounded down to whole steps. `"chinchilla"` is tokens_per_parameter x parameters."""
    tokens_per_parameter: float = Field(20.0, gt=0)
    parameters: Literal["total", "non-embedding"] = "total"
    """What counts as a parameter: all weights, a tied embedding once (as Hoffmann et al. 2022
    count them), or those outside the embedding and the head (as Kaplan et al. 2020 do)."""


class BatchConfig(Section):
    """`[batch]`: sequences per update and per forward pass of one process."""

    global_batch_size: PositiveInt
    """Sequences per update, over all processes and micro-batches."""
    micro_batch_size: PositiveInt = 1
    """Sequences per forward pass on one data-parallel rank."""


class OptimizerConfig(Section):
    """`[optimizer]`: AdamW (Loshchilov and Hutter 2019), decay on matrices only."""

    name: Literal["adamw"] = "adamw"
    """The algorithm."""
    implementation: Literal["auto", "torch", "apex", "compiled"] = "auto"
    """Whose fused kernel of AdamW: NVIDIA's apex (deepspeed engine only), torch's, or our own,
    compiled (native engine only), which writes the bf16 weights of a single data-parallel process.
    `auto` is the deepspeed engine's apex on CUDA where it is installed, our own for bf16 moments or
    gradients and for a single data-parallel process on CUDA, and else torch's."""
    lr: PositiveFp32 = 3e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    eps: PositiveFp32 = 1e-8
    weight_decay: NonNegativeFp32 = 0.1
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the moments. bf16 ones take half the memory and are rounded stochastically."""
    lr_scales: dict[Annotated[Role, Field(strict=False)], Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict
    )
    """What the rate of a role's parameters is, of the schedule's: `{ vocabulary = 0.1 }`."""
    clip_norm: PositiveFp32 | None = 1.0
    """The global gradient norm is scaled down to this; none clips nothing."""


class ScheduleConfig(Section):
    """`[schedule]`: the learning rate as a pure function of tokens."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: CountedOrZeroField | None = None
    """Linear from zero, in steps or tokens; 0 is none of it, none means 1% of the budget."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """`wsd` only: the last part of the budget, over which the rate falls linearly."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)


MAIN_SET = "validation"
"""What `data.validation` is called among validation sets."""
BUILTIN_TASKS = ("continuation", "cloze")
"""Those that are made from `data.validation`."""


class ValidationSetConfig(Section):
    """`[[eval.sets]]`: data of a source or a domain that has a loss of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=40)]
    path: PathField
    """Prefix of its shards."""


class EvalConfig(Section):
    """`[eval]`: validation loss on `data.validation`, at the start, at the end, and:"""

    every: DurationField | None = Duration(500, Unit.STEPS)
    batches: PositiveInt = 8
    """Global batches per evaluation: always the same sequences, from the start of the data."""
    budget: ShareField | None = None
    """The most of a session's time that evaluations may take, such as `"2%"`: one that would come
    too early waits. The first and the last are made in any case. None sets no limit."""
    sets: tuple[ValidationSetConfig, ...] = ()
    """More validation data, each with its own loss beside that of `data.validation`."""
    tasks: tuple[Annotated[str, Field(max_length=100)], ...] = ()
    """Questions that the model is asked: `continuation` and `cloze`, made from `data.validation`,
    or multiple-choice tasks of lm-eval by name (the `eval` extra)."""
    questions: PositiveInt = 100
    """Of each task; always the same ones."""
    task_path: PathField | None = None
    """A folder with task files for lm-eval of one's own."""
    prompts: Annotated[tuple[str, ...], Field(max_length=100)] | None = None
    """What the model goes on with at each evaluation, always by its likeliest token, for people to
    read. None is two beginnings of `data.validation`, where there is a tokenizer; `[]` nothing."""
    sample_tokens: PositiveInt = 32
    """What is added to each prompt at most; no more than half of `data.seq_len`."""


class MetricsConfig(Section):
    """`[metrics]`: what is written while training."""

    every: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (the `wandb` extra)."""
    mlflow_experiment: str | None = None
    """Also log to this MLflow experiment (the `mlflow` extra), where MLFLOW_TRACKING_URI says, by
    default into the run's own folder."""
    comet_project: str | None = None
    """Also log to this Comet project (the `comet` extra); without COMET_API_KEY into an archive in
    the run's folder."""


def _as_window(text: str) -> str:
    """As written, once it is one step or two with a dash between.

    Raises:
        ValueError: it is something else.
    """
    first, dash, last = text.partition("-")
    parts = [first, last] if dash else [first]
    if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise ValueError(f'expected steps such as "100-103" or "100", got {text[:40]!r}')
    if not 0 < int(first) <= int(last or first):
        raise ValueError(f'steps are counted from 1, the first one first, got "{text}"')
    return text


class ProfileConfig(Section):
    """`[profile]`: a few steps under torch's profiler, written to the run's `profile/`."""

    steps: Annotated[str, AfterValidator(_as_window)] | None = None
    """Such as "100-103". They are slower than others, and a trace grows with them."""
    ranks: tuple[NonNegativeInt, ...] = (0,)
    """Processes that profile, each into a file of its own."""
    memory: bool = True
    """On CUDA also keep a snapshot of the allocator's memory and its history over these steps."""

    @property
    def window(self) -> range | None:
        """The steps; None for none."""
        if self.steps is None:
            return None
        first, _, last = self.steps.partition("-")
        return range(int(first), int(last or first) + 1)
