"""`triax chat`: a conversation with a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

from triax.common.errors import UserError
from triax.common.showing import text_for
from triax.data.prepare.chat_template import ChatTemplate, Message
from triax.data.prepare.document_tokens import special_tokens
from triax.inference.texts import Writer
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
    writer, folder = writer_of(args)
    template = ChatTemplate.of(folder)
    if not template.is_own:
        print_note("the tokenizer has no chat template: the model may never have seen a chat")
    own = special_tokens(folder).get("eos_token")
    writer = replace(
        writer,
        stop_tokens=() if own is None else (own.id,),
        stop_strings=(*writer.stop_strings, *template.stop_strings),
    )
    beginning = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages: list[Message] = list(beginning)
    for number, said in enumerate(_said()):
        if said.strip() == "/new":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": said})
        seed = (args.seed + number) % 2**64
        answer = _answer(writer, template, messages, args.max_new_tokens, seed)
        messages.append({"role": "assistant", "content": answer})
    return 0


def _said() -> Iterator[str]:
    """The person's messages; at the end of the input or at Ctrl-C no more."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    while True:
        try:
            said = input("> " if is_terminal else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            raise UserError(f"the standard input: not UTF-8 text (byte {error.start})") from None
        if said.strip():
            yield said


def _answer(
    writer: Writer, template: ChatTemplate, messages: list[Message], max_new_tokens: int, seed: int
) -> str:
    """Print the answer as it is written; returns it, as far as it got."""
    prompt = writer.encode(template.render(messages))
    if len(prompt) + max_new_tokens > writer.context:
        print_note(f"the model sees the last {writer.context:,} tokens of the conversation")
    said = ""
    try:
        for piece in pieces(writer.write([prompt], max_new_tokens, [seed])):
            said += piece
            print(text_for(sys.stdout, piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    return said.strip()
