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
from triax.inference.generate import generate
from triax.inference.lm_eval_questions import require_lm_eval
from triax.inference.lm_eval_tokens import HarnessTokens
from triax.inference.load import Loaded, load_checkpoint
from triax.inference.sampling import Sampling
from triax.inference.scoring import score

_DEFAULT_CONTEXT = 2048
"""As lm-eval's own."""


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

    def __init__(self, loaded: Loaded, batch_size: int, tokenizer: str | None = None) -> None:
        """Raises:
        UserError: the checkpoint's tokenizer can't be used.
        """
        super().__init__(
            loaded.tokenizer(tokenizer),
            loaded.chosen_tokenizer(tokenizer),
            loaded.document_tokens(tokenizer),
        )
        self._model = loaded.model
        self._batch_size = batch_size
        self.max_length = loaded.context(_DEFAULT_CONTEXT)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
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
        return [self._continue(*request.args) for request in requests]

    def _continue(self, context: str, wishes: Mapping[str, Any]) -> str:
        from lm_eval.models.utils import normalize_gen_kwargs

        asked: Mapping[str, Any] = normalize_gen_kwargs(dict(wishes), self.max_gen_toks)
        num_new = int(asked["max_gen_toks"])
        if num_new >= self.max_length:
            raise UserError(
                f"a task wants {num_new:,} new tokens of a model with a context of "
                f"{self.max_length:,}: lower its max_gen_toks"
            )
        stops = [asked["until"]] if isinstance(asked["until"], str) else list(asked["until"])
        prompt = self.tok_encode(context)[-(self.max_length - num_new) :] or [self.prefix_token_id]
        new_tokens = generate(
            self._model,
            prompt,
            max_new_tokens=num_new,
            context=self.max_length,
            sampling=Sampling(
                temperature=float(asked["temperature"]) if asked["do_sample"] else 0.0,
                top_k=int(asked.get("top_k") or 0) or None,
            ),
            stop_tokens=[self.eot_token_id],
        )
        written: list[int] = []
        text = ""
        for token in new_tokens:
            written.append(token)
            text = decode(self._tokenizer, written)
            if any(stop and stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text


def run_tasks(checkpoint: str, options: TaskOptions) -> dict[str, Any]:
    """Evaluate a checkpoint on tasks of lm-eval.

    Returns:
        What lm-eval returns; it is at `options.output` too, if that is given.

    Raises:
        UserError: the extra isn't installed, the checkpoint can't be used, or a task isn't there.
    """
    require_lm_eval()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    manager = TaskManager(include_path=options.include_path and str(options.include_path))
    _refuse_unknown(manager.all_tasks, options)
    loaded = load_checkpoint(checkpoint)
    # Made here since its base is only there with the extra.
    model = type("TriaxLM", (Harness, TemplateLM), {})(
        loaded, options.batch_size, options.tokenizer
    )
    try:
        results = simple_evaluate(
            model=model,
            tasks=list(options.tasks),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=manager,
            batch_size=options.batch_size,
            log_samples=options.log_samples,
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"a task's data can't be had ({error}): without a network, name local files in a task "
            "of your own (--include-path DIR), or let a machine with one fill the datasets cache"
        ) from error
    assert results is not None
    results["config"]["model"], results["model_name"] = "triax", str(loaded.path)
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    if options.output is not None:
        write_atomically(options.output, text + "\n")
    found: dict[str, Any] = json.loads(text)
    return found


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
