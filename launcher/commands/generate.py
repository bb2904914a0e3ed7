"""`triax generate`: let a checkpoint, or an exported model, write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from triax.common.showing import text_for
from triax.inference.load import find_model
from triax.inference.prompts import read_prompts
from triax.inference.sampling import Sampling
from triax.inference.team import Team
from triax.inference.texts import Text, Writer
from triax.launcher.cluster.together import add_team_arguments, run_together
from triax.launcher.terminal.arguments import as_path_text, count, positive_int, torch_seed, utf8
from triax.launcher.terminal.messages import print_note

_DEFAULT_CONTEXT = 2048
_EXAMPLE = """\
FILE has a prompt in each line, or JSON lines with a field `prompt`; - is the
standard input. With --json each text is a line with the fields prompt, text,
finish_reason, num_tokens and log_prob; otherwise texts stand below each other.

examples:
  triax generate runs/quickstart --prompt "def main("
  triax generate exported/ --prompts questions.jsonl --num-samples 4 --json
  triax generate runs/large --prompt "Once" --nproc-per-node 8 --tensor 8
"""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, and how its texts are drawn."""
    parser.add_argument(
        "checkpoint",
        type=as_path_text,
        metavar="MODEL",
        help="a run's, a checkpoint's or an exported model's folder",
    )
    parser.add_argument(
        "--max-new-tokens", "--max-tokens",
        type=positive_int, default=200, metavar="N", help="at most so many (200)",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest (0.8)"
    )
    parser.add_argument("--top-k", type=count, default=50, metavar="K", help="0 allows all (50)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="likeliest of this probability (1)"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="share of the likeliest's (0)"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="1 is none (1)"
    )
    parser.add_argument(
        "--stop", type=utf8, action="append", default=[], metavar="TEXT", help="ends a text"
    )
    parser.add_argument("--seed", type=torch_seed, default=0, metavar="N", help="of the draws (0)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights")
    parser.add_argument(
        "--tokenizer",
        type=as_path_text,
        metavar="DIR",
        help="default: the one it was trained with",
    )
    add_team_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_arguments(parser)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", type=utf8, default="", metavar="TEXT", help="what the text begins with"
    )
    prompts.add_argument("--prompts", type=as_path_text, metavar="FILE", help="many of them")
    parser.add_argument(
        "--num-samples", type=positive_int, default=1, metavar="N", help="texts a prompt (1)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="texts at once (16)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.epilog = _EXAMPLE


def writer_of(args: argparse.Namespace, team: Team) -> tuple[Writer, str]:
    """The model that the arguments name, ready to write, and its tokenizer's folder.

    Raises:
        UserError: it or its tokenizer can't be used, or an argument makes no sense.
    """
    sampling = Sampling(
        repetition_penalty=args.repetition_penalty,
        temperature=args.temperature,
        top_k=args.top_k or None,
        top_p=args.top_p,
        min_p=args.min_p,
    )
    found = find_model(args.checkpoint)
    tokenizer = found.tokenizer(args.tokenizer)
    writer = Writer(
        found.load(args.dtype, team),
        tokenizer,
        found.document_tokens(args.tokenizer),
        found.context(_DEFAULT_CONTEXT),
        sampling,
        stop_tokens=tuple(found.stop_tokens(args.tokenizer)),
        stop_strings=tuple(text for text in args.stop if text),
        team=team,
    )
    return writer, found.chosen_tokenizer(args.tokenizer)


def run(args: argparse.Namespace) -> int:
    """Print each prompt and what the model adds to it.

    Raises:
        UserError: the model, its tokenizer or the prompts can't be used, or an argument makes no
            sense.
    """
    return run_together(args, _generate)


def _generate(args: argparse.Namespace, team: Team) -> int:
    prompts = [args.prompt]
    if args.prompts is not None:
        prompts = team.tell(read_prompts(args.prompts) if team.is_main else [])
    writer, _ = writer_of(args, team)
    written = [writer.encode(prompt) for prompt in prompts]
    longest = max(len(writer.begin(tokens)) for tokens in written)
    if longest > writer.context and team.is_main:
        print_note(
            f"--prompt has {longest:,} tokens, of which the model sees the last "
            f"{writer.context:,}: it was trained on no longer context"
        )
    rows = [
        _Row(prompt, tokens, (args.seed + sample) % 2**64)
        for prompt, tokens in zip(prompts, written, strict=True)
        for sample in range(args.num_samples)
    ]
    if len(rows) == 1 and not args.json:
        _stream(writer, rows[0], args.max_new_tokens, shows=team.is_main)
        return 0

    def write(batches: Sequence[Sequence[_Row]]) -> list[list[_Written]]:
        return [_write(writer, batch, args.max_new_tokens) for batch in batches]

    batches = [rows[at : at + args.batch_size] for at in range(0, len(rows), args.batch_size)]
    for at in range(0, len(batches), team.num_shares):
        texts = chain(*team.divide(batches[at : at + team.num_shares], write))
        for number, text in enumerate(texts, at * args.batch_size):
            if team.is_main:
                _show(rows[number].prompt, text, number, as_json=args.json)
    return 0


class _Row(NamedTuple):
    prompt: str
    tokens: list[int]
    seed: int


class _Written(NamedTuple):
    """What a line of JSON tells, but for the prompt."""

    text: str
    finish_reason: str | None
    num_tokens: int
    log_prob: float


def _write(writer: Writer, rows: Sequence[_Row], max_new_tokens: int) -> list[_Written]:
    """The texts of a batch."""
    tokens, seeds = [row.tokens for row in rows], [row.seed for row in rows]
    [*_, texts] = writer.write(tokens, max_new_tokens, seeds)
    return [
        _Written(text.added, text.finish_reason, len(text.new), round(text.log_prob, 6))
        for text in texts
    ]


def _stream(writer: Writer, row: _Row, max_new_tokens: int, *, shows: bool) -> None:
    """Print one text as it grows."""
    steps = writer.write([row.tokens], max_new_tokens, [row.seed])
    for piece in chain([row.prompt], pieces(steps), "\n"):
        if shows:
            print(text_for(sys.stdout, piece), end="", flush=True)


def pieces(steps: Iterator[list[Text]]) -> Iterator[str]:
    """What each step adds to what can be shown."""
    shown = 0
    for [text] in steps:
        yield text.added[shown:]
        shown = max(shown, len(text.added))
    yield text.added[shown:]


def _show(prompt: str, written: _Written, number: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"prompt": prompt, **written._asdict()}), flush=True)
        return
    if number > 0:
        print(f"\n-- {number + 1} --")
    print(text_for(sys.stdout, prompt + written.text), flush=True)
