"""`triax data conversations`: conversations, or pairs of answers, into shards."""

from __future__ import annotations

import argparse

from rich.console import Console

from triax.common.errors import ExitCode
from triax.data.prepare.chat_template import ChatTemplate
from triax.data.prepare.conversations import ChatRules, prepare_conversations
from triax.data.prepare.corpus import TOKENS_PER_SHARD
from triax.launcher.terminal.arguments import add_tokens_per_shard, as_path
from triax.launcher.terminal.progress import show_progress

HELP = "write conversations by a chat template into shards"
DESCRIPTION = """\
Write conversations by the tokenizer's chat template, and tokenize them into
training and validation shards whose tokens have weights: only the assistant's
words are learned. Rows hold messages, ShareGPT's conversations, Alpaca's
instructions, or prompt and completion; with --pairs prompt, chosen and
rejected. OUTPUT/tokenizer is the tokenizer with the template.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="JSON lines, parquet, or a `datasets` name"
    )
    parser.add_argument("--tokenizer", type=as_path, required=True, metavar="DIR")
    parser.add_argument("--output", type=as_path, required=True, metavar="DIR")
    parser.add_argument(
        "--pairs", action="store_true", help="rows are a prompt, a chosen and a rejected answer"
    )
    parser.add_argument(
        "--chat-template", type=as_path, metavar="FILE", help="in Jinja (the tokenizer's own)"
    )
    parser.add_argument(
        "--loss-on",
        choices=("answers", "contents"),
        default="answers",
        help="learn answers with the template's mark of their end, or their words alone (answers)",
    )
    parser.add_argument(
        "--validation-fraction", type=float, default=0.01, metavar="F", help="of rows (0.01)"
    )
    add_tokens_per_shard(parser, TOKENS_PER_SHARD)


def run(args: argparse.Namespace) -> int:
    """Prepare, and say what was made.

    Raises:
        UserError: a row, the tokenizer or its template can't be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    rules = ChatRules(
        kind="pairs" if args.pairs else "conversations",
        loss_on=args.loss_on,
        template=ChatTemplate.to_teach(args.tokenizer, args.chat_template),
    )
    with show_progress() as progress:
        data = prepare_conversations(
            args.inputs,
            args.tokenizer,
            args.output,
            rules,
            validation_fraction=args.validation_fraction,
            tokens_per_shard=args.tokens_per_shard,
            progress=progress,
        )
    for name, counts in (("train", data.train), ("validation", data.validation)):
        if counts.shards:
            console.print(
                f"{args.output / name}: {counts.tokens:,} tokens, {counts.documents:,} "
                "conversations",
                markup=False,
            )
    if data.num_left_out:
        console.print(f"left out {data.num_left_out:,} rows without an assistant's words")
    console.print(f"the tokenizer with its chat template: {args.output / 'tokenizer'}")
    return ExitCode.DONE
