"""`triax data`: what is done to text and to shards, a verb each in a module of its own."""

from __future__ import annotations

import argparse
from typing import Protocol

from triax.launcher.commands import (
    data_clean,
    data_conversations,
    data_inspect,
    data_prepare,
    data_verify,
)

_EXAMPLE = """\
examples:
  triax data clean corpus/ --output cleaned --recipe examples/clean.toml
  triax data prepare corpus/ --tokenizer tokenizer --output data
  triax data conversations chats.jsonl --tokenizer tokenizer --output chats
  triax data inspect data/train --tokenizer tokenizer --document 3
  triax data inspect runs/quickstart --sample 4096 --count 8
  triax data verify data/train data/validation
"""


class _Verb(Protocol):
    """What a verb's module offers."""

    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


_VERBS: dict[str, _Verb] = {
    "clean": data_clean,
    "prepare": data_prepare,
    "conversations": data_conversations,
    "inspect": data_inspect,
    "verify": data_verify,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their arguments."""
    parser.epilog = _EXAMPLE
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, verb in _VERBS.items():
        verb.add_arguments(
            actions.add_parser(
                name,
                help=verb.HELP,
                description=verb.DESCRIPTION,
                epilog=_EXAMPLE,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )


def run(args: argparse.Namespace) -> int:
    """Do what the verb says, and return its exit code."""
    return _VERBS[args.action].run(args)
