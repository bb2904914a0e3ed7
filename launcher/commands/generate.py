"""`triax generate`: let a checkpoint, or an exported model, write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from triax.common.showing import text_for
from triax.inference.load import load_checkpoint
from triax.inference.prompts import read_prompts
from triax.inference.sampling import Sampling
from triax.inference.texts import Text, Writer
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


def writer_of(args: argparse.Namespace) -> tuple[Writer, str]:
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
    loaded = load_checkpoint(args.checkpoint, args.dtype)
    writer = Writer(
        loaded.model,
        loaded.tokenizer(args.tokenizer),
        loaded.document_tokens(args.tokenizer),
        loaded.context(_DEFAULT_CONTEXT),
        sampling,
        stop_strings=tuple(text for text in args.stop if text),
    )
    return writer, loaded.chosen_tokenizer(args.tokenizer)


def run(args: argparse.Namespace) -> int:
    """Print each prompt and what the model adds to it.

    Raises:
        UserError: the model, its tokenizer or the prompts can't be used, or an argument makes no
            sense.
    """
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    writer, _ = writer_of(args)
    written = [writer.encode(prompt) for prompt in prompts]
    longest = max(len(writer.begin(tokens)) for tokens in written)
    if longest > writer.context:
        print_note(
            f"--prompt has {longest:,} tokens, of which the model sees the last "
            f"{writer.context:,}: it was trained on no longer context"
        )
    rows = [
        (prompt, tokens, (args.seed + sample) % 2**64)
        for prompt, tokens in zip(prompts, written, strict=True)
        for sample in range(args.num_samples)
    ]
    if len(rows) == 1 and not args.json:
        _stream(writer, *rows[0], args.max_new_tokens)
        return 0
    for start in range(0, len(rows), args.batch_size):
        together = rows[start : start + args.batch_size]
        prompts_together, tokens, seeds = zip(*together, strict=True)
        [*_, texts] = writer.write(tokens, args.max_new_tokens, seeds)
        for row, (prompt, text) in enumerate(zip(prompts_together, texts, strict=True)):
            _show(prompt, text, start + row, as_json=args.json)
    return 0


def _stream(
    writer: Writer, prompt: str, tokens: Sequence[int], seed: int, max_new_tokens: int
) -> None:
    """Print one text as it grows."""
    print(text_for(sys.stdout, prompt), end="", flush=True)
    for piece in pieces(writer.write([tokens], max_new_tokens, [seed])):
        print(text_for(sys.stdout, piece), end="", flush=True)
    print()


def pieces(steps: Iterator[list[Text]]) -> Iterator[str]:
    """What each step adds to what can be shown."""
    shown = 0
    for [text] in steps:
        yield text.added[shown:]
        shown = max(shown, len(text.added))
    yield text.added[shown:]


def _show(prompt: str, text: Text, number: int, *, as_json: bool) -> None:
    if as_json:
        line = {
            "prompt": prompt,
            "text": text.added,
            "finish_reason": text.finish_reason,
            "num_tokens": len(text.new),
            "log_prob": round(text.log_prob, 6),
        }
        print(json.dumps(line), flush=True)
        return
    if number > 0:
        print(f"\n-- {number + 1} --")
    print(text_for(sys.stdout, prompt + text.added), flush=True)
