"""Scripts that make bash, zsh and fish complete a command line, from the parsers themselves.

Each script is a table: behind which words (`triax data prepare`) which words may come. It starts no
triax, so that completing takes no time; after an update it is to be made anew.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """What may come behind some words.

    Attributes:
        verbs: commands, with a line of help.
        options: likewise; those with "=" at the end take a value right behind it.
        values: of options that take one of a few.
    """

    verbs: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Places = dict[str, Place]
"""By the words that come before, such as "triax data"."""


def find_places(
    commands: Mapping[str, tuple[str, argparse.ArgumentParser]], overrides: Iterable[str]
) -> Places:
    """All places of a command line.

    Args:
        commands: of triax, by name: a line of help, and the parser.
        overrides: config paths that commands take which take any.
    """
    verbs = {name: help_line for name, (help_line, _) in commands.items()}
    places = {"triax": Place(verbs, {"--help": "", "--version": ""})}
    keys = {f"--{path}=": "" for path in overrides}
    for name, (_, parser) in commands.items():
        more = {} if parser.get_default("overrides") is None else keys
        places.update(_places_of(f"triax {name}", parser, more))
    return places


def _places_of(
    words: str, parser: argparse.ArgumentParser, more: Mapping[str, str]
) -> Iterator[tuple[str, Place]]:
    verbs: dict[str, str] = {}
    options: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, inner in action.choices.items():
                verbs[name] = helps.get(name, "")
                yield from _places_of(f"{words} {name}", inner, {})
        elif action.help != argparse.SUPPRESS:
            for option in action.option_strings:
                options[option] = action.help or ""
                if action.choices is not None:
                    values[option] = tuple(map(str, action.choices))
            if not action.option_strings and action.choices is not None:
                verbs |= dict.fromkeys(map(str, action.choices), "")
    yield words, Place(verbs, options | dict(more), values)


def bash(places: Places) -> str:
    """For `eval "$(triax completion bash)"`."""
    return f"""\
# triax: bash completion, by `triax completion bash`
_triax() {{
    local at=triax word words values n
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    for ((n = 1; n < COMP_CWORD; n++)); do
        word="${{COMP_WORDS[n]}}"
        case "$at $word" in
            {_paths(places)}) at="$at $word" ;;
        esac
    done
    case "$at $before" in
{_value_cases(places, "values={}")}
    esac
    case "$at" in
{_cases(places, "words={}")}
    esac
    if [[ -n "$values" ]]; then
        words="$values"
    elif [[ "$current" != -* ]]; then
        words=" $words"
        words="${{words// -*/}}"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ ${{#COMPREPLY[@]}} -eq 1 && "${{COMPREPLY[0]}}" == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}}
complete -o default -F _triax triax
"""


def zsh(places: Places) -> str:
    """For `eval "$(triax completion zsh)"`, behind compinit."""
    return f"""\
#compdef triax
# triax: zsh completion, by `triax completion zsh`
_triax() {{
    local at=triax word before="${{words[CURRENT-1]}}" current="${{words[CURRENT]}}"
    local -a found
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$at $word" in
            {_paths(places)}) at="$at $word" ;;
        esac
    done
    case "$at $before" in
{_value_cases(places, "compadd -- {}; return", split=True)}
    esac
    case "$at" in
{_cases(places, "found=({})", split=True)}
    esac
    if [[ "$current" == -* ]]; then
        compadd -S '' -- "${{(@M)found:#-*=}}"
        compadd -- "${{(@)${{(@M)found:#-*}}:#*=}}"
    else
        compadd -- "${{(@)found:#-*}}"
        _files
    fi
}}
compdef _triax triax
"""


def fish(places: Places) -> str:
    """For `triax completion fish | source`."""
    lines = [
        "# triax: fish completion, by `triax completion fish`",
        "function __triax_at",
        "    set -l at triax",
        "    for word in (commandline -opc)[2..-1]",
        '        switch "$at $word"',
        f"            case {' '.join(map(shlex.quote, list(places)[1:]))}",
        '                set at "$at $word"',
        "        end",
        "    end",
        '    test "$at" = "$argv"',
        "end",
    ]
    for words, place in places.items():
        where = f"complete -c triax -n {_fish(f'__triax_at {words}')}"
        for verb, help_line in place.verbs.items():
            lines.append(f"{where} -a {_fish(verb)} -d {_fish(help_line)}")
        for option, help_line in place.options.items():
            if option.endswith("="):
                lines.append(f"{where} -a {_fish(option)}")
                continue
            kind = "-l" if option.startswith("--") else "-s"
            line = f"{where} {kind} {_fish(option.lstrip('-'))} -d {_fish(help_line)}"
            if option in place.values:
                line += f" -x -a {_fish(' '.join(place.values[option]))}"
            lines.append(line)
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[Places], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _paths(places: Places) -> str:
    return "|".join(f'"{words}"' for words in list(places)[1:])


def _cases(places: Places, line: str, *, split: bool = False) -> str:
    """Verbs come before options, so that options can be cut off as an end."""
    cases = []
    for words, place in places.items():
        found = [*place.verbs, *place.options]
        text = " ".join(map(shlex.quote, found)) if split else shlex.quote(" ".join(found))
        cases.append(f'        "{words}") {line.format(text)} ;;')
    return "\n".join(cases)


def _value_cases(places: Places, line: str, *, split: bool = False) -> str:
    cases = []
    for words, place in places.items():
        for option, values in place.values.items():
            text = " ".join(map(shlex.quote, values))
            text = text if split else shlex.quote(" ".join(values))
            cases.append(f'        "{words} {option}") {line.format(text)} ;;')
    return "\n".join(cases)


def _fish(text: str) -> str:
    """In single quotes, in which fish knows two escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
