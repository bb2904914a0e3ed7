"""A checkpoint in lm-eval, the harness of public benchmarks (the `eval` extra)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triax.common.errors import UserError
from triax.common.files import write_atomically
from triax.data.prepare.tokenizer import decode
from triax.inference.generate import generate_batch
from triax.inference.lm_eval_questions import require_lm_eval
from triax.inference.lm_eval_tokens import HarnessTokens
from triax.inference.load import ModelFolder, find_model
from triax.inference.sampling import Sampling
from triax.inference.scoring import score
from triax.inference.team import Team

_DEFAULT_CONTEXT = 2048
"""As lm-eval's own."""
_THEIR_TOP_K = 50
"""What `transformers` draws from where a task doesn't say."""
_NUM_RESAMPLES = 100_000
"""For standard errors that need a bootstrap; lm-eval's own default."""


@dataclass(frozen=True)
class TaskOptions:
    """What is asked of lm-eval."""

    tasks: Sequence[str]
    limit: int | None = None
    """Only the first so many examples of each task."""
    num_fewshot: int | None = None
    """Examples shown before each question; None: as the task says."""
    include_path: Path | None = None
    """A folder with task files of one's own."""
    batch_size: int = 8
    output: Path | None = None
    """Where the results go, as lm-eval's JSON."""
    tokenizer: str | None = None
    log_samples: bool = False
    """Keep each example's answers in the results."""


class Harness(HarnessTokens):
    """What lm-eval asks of a model, answered by one that is loaded.

    The methods are those of its `TemplateLM`. Texts are cut into tokens as its `hf` model cuts
    them with the exported tokenizer.
    """

    max_gen_toks = 256

    def __init__(
        self,
        found: ModelFolder,
        batch_size: int,
        tokenizer: str | None = None,
        team: Team | None = None,
    ) -> None:
        """Raises:
        UserError: the checkpoint's weights or its tokenizer can't be used.
        """
        super().__init__(
            found.tokenizer(tokenizer),
            found.chosen_tokenizer(tokenizer),
            found.document_tokens(tokenizer),
        )
        self._team = team or Team.alone()
        self._batch_size = batch_size
        self.max_length = found.context(_DEFAULT_CONTEXT)
        self._model = found.load(team=self._team)
        self._stop_tokens = found.stop_tokens(tokenizer)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        longest = max((len(continuation) for _, continuation in pairs), default=0)
        if longest > self.max_length:
            raise UserError(
                f"a task asks for the likelihood of a text of {longest:,} tokens, of which the "
                f"model sees {self.max_length:,}: it was trained on no longer context"
            )
        return self._team.divide(pairs, self._score)

    def _score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        scored = score(self._model, pairs, max_length=self.max_length, batch_size=self._batch_size)
        return [(one.log_prob, one.is_greedy) for one in scored]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: object) -> list[float]:
        """The log-likelihood of whole texts, in windows that see as much as fits."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows, owners = [], []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(number)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows)
        for number, (log_prob, _greedy) in zip(owners, scored, strict=True):
            totals[number] += log_prob
        return totals

    def generate_until(self, requests: Sequence[Any], **_: object) -> list[str]:
        """What the model adds to each text, up to the first of its stop strings."""
        return self._team.divide([request.args for request in requests], self._write_all)

    def _write_all(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Together what is asked for in the same way; of those the texts of like lengths."""
        wishes = [_Wishes.of(given, self.max_gen_toks) for _, given in asked]
        prompts = [
            self._prompt(context, wish) for (context, _), wish in zip(asked, wishes, strict=True)
        ]
        texts = [""] * len(asked)
        for wish in dict.fromkeys(wishes):
            numbers = [number for number, own in enumerate(wishes) if own == wish]
            numbers.sort(key=lambda number: -len(prompts[number]))
            for start in range(0, len(numbers), self._batch_size):
                together = numbers[start : start + self._batch_size]
                written = self._write([prompts[number] for number in together], wish)
                for number, text in zip(together, written, strict=True):
                    texts[number] = text
        return texts

    def _prompt(self, context: str, wish: _Wishes) -> list[int]:
        if wish.num_new >= self.max_length:
            raise UserError(
                f"a task wants {wish.num_new:,} new tokens of a model with a context of "
                f"{self.max_length:,}: lower its max_gen_toks"
            )
        room = self.max_length - wish.num_new
        return self.tok_encode(context)[-room:] or [self.prefix_token_id]

    def _write(self, prompts: Sequence[Sequence[int]], wish: _Wishes) -> list[str]:
        """What follows the prompts; the model is asked until the last of them has ended."""
        written: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        is_open = [True] * len(prompts)
        for step in generate_batch(
            self._model,
            prompts,
            max_new_tokens=wish.num_new,
            context=self.max_length,
            sampling=wish.sampling,
            seeds=[0] * len(prompts),
            stop_tokens=self._stop_tokens,
            team=self._team,
        ):
            for row, new in enumerate(step):
                if new is None or not is_open[row]:
                    is_open[row] = False
                    continue
                written[row].append(new.token)
                texts[row] = decode(self._tokenizer, written[row])
                is_open[row] = not any(stop in texts[row] for stop in wish.stops)
            if not any(is_open):
                break
        return [wish.cut(text) for text in texts]


@dataclass(frozen=True)
class _Wishes:
    """How a task wants texts to be written."""

    num_new: int
    stops: tuple[str, ...]
    sampling: Sampling

    @staticmethod
    def of(given: Mapping[str, Any], max_gen_toks: int) -> _Wishes:
        """In the words that lm-eval's tasks have.

        Raises:
            UserError: one of them has no meaning here.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        asked: Mapping[str, Any] = normalize_gen_kwargs(dict(given), max_gen_toks)
        stops = [asked["until"]] if isinstance(asked["until"], str) else list(asked["until"])
        if int(asked.get("num_beams") or 1) > 1:
            raise UserError("a task wants beam search (num_beams), which triax doesn't have")
        draws = bool(asked["do_sample"])
        sampling = Sampling(
            temperature=float(asked["temperature"]) if draws else 0.0,
            top_k=(int(asked.get("top_k", _THEIR_TOP_K) or 0) or None) if draws else None,
            top_p=float(asked.get("top_p") or 1.0) if draws else 1.0,
            min_p=float(asked.get("min_p") or 0.0) if draws else 0.0,
            repetition_penalty=float(asked.get("repetition_penalty") or 1.0),
        )
        return _Wishes(int(asked["max_gen_toks"]), tuple(s for s in stops if s), sampling)

    def cut(self, text: str) -> str:
        """The text before its first stop string."""
        for stop in self.stops:
            text = text.split(stop)[0]
        return text


def run_tasks(checkpoint: str, options: TaskOptions, team: Team | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint on tasks of lm-eval.

    Every process of a team has lm-eval ask for all, and answers its share: so what it makes of the
    answers is what it makes of one process's.

    Returns:
        What lm-eval returns; the main process has written it to `options.output` too, if that is
        given. Nothing on the others.

    Raises:
        UserError: the extra isn't installed, the checkpoint can't be used, or a task isn't there.
    """
    require_lm_eval()
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise UserError(f"--output {options.output}: {options.output.parent} is no folder")
    team = team or Team.alone()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    manager = TaskManager(include_path=options.include_path and str(options.include_path))
    _refuse_unknown(manager.all_tasks, options)
    found = find_model(checkpoint)
    # Made here since its base is only there with the extra.
    model = type("TriaxLM", (Harness, TemplateLM), {})(
        found, options.batch_size, options.tokenizer, team
    )
    results = _answered(model, manager, options, _NUM_RESAMPLES if team.is_main else 0)
    if not team.is_main:
        return {}
    results["config"]["model"], results["model_name"] = "triax", str(found.path)
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    if options.output is not None:
        write_atomically(options.output, text + "\n")
    as_read: dict[str, Any] = json.loads(text)
    return as_read


def _answered(model: Any, manager: Any, options: TaskOptions, num_resamples: int) -> dict[str, Any]:
    """What lm-eval makes of the model's answers."""
    from lm_eval import simple_evaluate

    try:
        results: dict[str, Any] | None = simple_evaluate(
            model=model,
            tasks=list(options.tasks),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=manager,
            batch_size=options.batch_size,
            log_samples=options.log_samples,
            bootstrap_iters=num_resamples,
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"a task's data can't be had ({error}): without a network, name local files in a task "
            "of your own (--include-path DIR), or let a machine with one fill the datasets cache"
        ) from error
    return results or {}  # it tells the first process of a machine alone


def _refuse_unknown(known: Sequence[str], options: TaskOptions) -> None:
    unknown = [task for task in options.tasks if task not in known]
    if unknown:
        where = f" or {options.include_path}" if options.include_path else ""
        raise UserError(
            f"--tasks: {', '.join(unknown)}: no such task in lm-eval{where}; "
            "`lm-eval ls tasks` lists its own, --include-path DIR adds a folder of yours"
        )


def task_table(results: Mapping[str, Any]) -> list[str]:
    """Each task's figures with their standard errors, a line each, within 80 columns."""
    lines = [f"{'task':<32} {'shots':>5} {'metric':<16} {'value':>10}   std. error"]
    for task, figures in results["results"].items():
        shots = results.get("n-shot", {}).get(task, "")
        for key, value in sorted(figures.items()):
            metric, _, kind = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr") or not kind:
                continue
            error = figures.get(f"{metric}_stderr,{kind}")
            shown = f"{error:.4f}" if isinstance(error, float) else "-"
            name = metric if kind == "none" else f"{metric}/{kind}"
            lines.append(f"{task[:32]:<32} {shots:>5} {name[:16]:<16} {value:>10.4f} ± {shown:>9}")
    return lines
