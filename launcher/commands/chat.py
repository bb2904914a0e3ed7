"""`triax chat`: a conversation with a model."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import FrameType

from triax.common.errors import UserError
from triax.common.showing import text_for
from triax.data.prepare.chat_template import ChatTemplate, Message
from triax.inference.team import Team
from triax.inference.texts import Writer
from triax.launcher.cluster.together import run_together
from triax.launcher.commands.generate import add_model_arguments, pieces, writer_of
from triax.launcher.terminal.arguments import utf8
from triax.launcher.terminal.messages import print_note

_EXAMPLE = """\
Ctrl-C ends the answer, at the prompt the conversation; /new begins another one.
Where the standard input is no terminal, each of its lines is a message.

example:
  triax chat exported/ --system "Answer in one sentence."
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--system", type=utf8, metavar="TEXT", help="what stands before all")
    parser.epilog = _EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Answer message after message until there are no more.

    Raises:
        UserError: the model or its tokenizer can't be used, or an argument makes no sense.
    """
    return run_together(args, _chat)


def _chat(args: argparse.Namespace, team: Team) -> int:
    if team.num_shares > 1:
        raise UserError(
            "a conversation is one text, which whole copies of a model can't share: give --shard, "
            "or for --tensor as many as there are processes"
        )
    if not team.is_main:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all do what the main process says
    writer, folder = writer_of(args, team)
    template = ChatTemplate.of(folder)
    if not template.is_own and team.is_main:
        print_note("the tokenizer has no chat template: the model may never have seen a chat")
    writer = replace(writer, stop_strings=(*writer.stop_strings, *template.stop_strings))
    beginning = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages: list[Message] = list(beginning)
    for number, said in enumerate(_said(team)):
        if said.strip() == "/new":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": said})
        seed = (args.seed + number) % 2**64
        answer = _answer(writer, template, messages, args.max_new_tokens, seed)
        messages.append({"role": "assistant", "content": answer})
    return 0


def _said(team: Team) -> Iterator[str]:
    """The person's messages; at the end of the input or at Ctrl-C no more."""
    while (said := team.tell(_next_message() if team.is_main else None)) is not None:
        if said.strip():
            yield said


def _next_message() -> str | None:
    if sys.stdin is None:  # it is where a shell has closed it (`<&-`)
        return None
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"the standard input: not UTF-8 text (byte {error.start})") from None


def _answer(
    writer: Writer, template: ChatTemplate, messages: list[Message], max_new_tokens: int, seed: int
) -> str:
    """Print the answer as it is written; returns it, as far as it got."""
    team = writer.team or Team.alone()
    prompt = writer.encode(template.render(messages))
    if len(prompt) + max_new_tokens > writer.context and team.is_main:
        print_note(f"the model sees the last {writer.context:,} tokens of the conversation")
    said = ""
    with _listening() if team.is_main else nullcontext(threading.Event()) as interrupt:
        for piece in pieces(writer.write([prompt], max_new_tokens, [seed])):
            said += piece
            _show(piece, team)
            if team.tell(interrupt.is_set()):  # all stop after the same token
                _show(" ...", team)
                break
    _show("\n", team)
    return said.strip()


def _show(text: str, team: Team) -> None:
    if team.is_main:
        print(text_for(sys.stdout, text), end="", flush=True)


@contextmanager
def _listening() -> Iterator[threading.Event]:
    """Within it Ctrl-C sets the event; the second one interrupts."""
    interrupt = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        if interrupt.is_set():
            signal.default_int_handler(number, frame)
        interrupt.set()

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
