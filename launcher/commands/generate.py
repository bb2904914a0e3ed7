"""`triax generate`: let a checkpoint write."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from triax.common.errors import UserError
from triax.common.showing import text_for
from triax.data.prepare.tokenizer import decode, library_errors
from triax.inference.generate import generate
from triax.inference.load import load_checkpoint
from triax.launcher.terminal.arguments import as_path_text, count, positive_int, torch_seed, utf8
from triax.launcher.terminal.messages import print_note

_DEFAULT_CONTEXT = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "checkpoint",
        type=as_path_text,
        metavar="CHECKPOINT",
        help="a run's or a checkpoint's folder",
    )
    parser.add_argument(
        "--prompt", type=utf8, default="", metavar="TEXT", help="what the text begins with"
    )
    parser.add_argument(
        "--max-tokens", type=positive_int, default=200, metavar="N", help="at most so many (200)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest (0.8)"
    )
    parser.add_argument("--top-k", type=count, default=50, metavar="K", help="0 allows all (50)")
    parser.add_argument("--seed", type=torch_seed, default=0, metavar="N", help="of the draws (0)")
    parser.add_argument(
        "--tokenizer",
        type=as_path_text,
        metavar="DIR",
        help="default: the one it was trained with",
    )
    parser.epilog = 'example:\n  triax generate runs/quickstart --prompt "def main("\n'


def run(args: argparse.Namespace) -> int:
    """Print the prompt and what the model adds to it.

    Raises:
        UserError: the checkpoint or its tokenizer can't be used, or an argument makes no sense.
    """
    if not 0 <= args.temperature < math.inf:
        raise UserError(f"--temperature: expected a number of at least 0, got {args.temperature}")
    loaded = load_checkpoint(args.checkpoint)
    tokenizer = loaded.tokenizer(args.tokenizer)
    tokens = loaded.document_tokens(args.tokenizer)
    with library_errors("the tokenizer"):
        written = list(tokenizer.encode(args.prompt, add_special_tokens=False).ids)
    # As in training: what begins a document, else the end of the one before.
    begin = tokens.begin or (tokens.end if not written else None)
    prompt = written if begin is None else [begin.id, *written]
    context = loaded.context(_DEFAULT_CONTEXT)
    if len(prompt) > context:
        print_note(
            f"--prompt has {len(prompt):,} tokens, of which the model sees the last {context:,}: "
            "it was trained on no longer context"
        )
    new_tokens = generate(
        loaded.model,
        prompt,
        max_new_tokens=args.max_tokens,
        context=context,
        temperature=args.temperature,
        top_k=args.top_k or None,
        seed=args.seed,
        stop_token=tokens.end.id,
    )
    print(args.prompt, end="", flush=True)
    for piece in _texts(tokenizer, written, new_tokens):
        print(text_for(sys.stdout, piece), end="", flush=True)
    print()
    return 0


def _texts(tokenizer: Tokenizer, written: Sequence[int], new: Iterator[int]) -> Iterator[str]:
    """What the new tokens add to the text of those written before, piece after piece."""
    tokens = list(written)
    shown = text = decode(tokenizer, tokens)
    for token in new:
        tokens.append(token)
        text = decode(tokenizer, tokens)
        # A character may be split over tokens: it is shown once it is whole, or at the end.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :]
