"""How the commands of the command line end, and what their help and their usage errors show."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from agentic.cli.completion import whole_words_in_bash
from agentic.cli.terminal import escaped, exit_in_one_line

# Typer exports no other of its usage errors.
UsageError: Final[Any] = typer.BadParameter.__base__


class Commands(TyperGroup):
    """Commands that end with one line for what went wrong."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; exit with 1 for an error, and with 2 for a usage error, whose message shows no value."""
        with exit_in_one_line(), whole_words_in_bash():
            try:
                code = super().main(*args, **options | {"standalone_mode": False})
            except UsageError as error:
                arguments = args[0] if args else options.get("args")
                error.message = _without_values(error.message, sys.argv[1:] if arguments is None else arguments)
                error.show()
                code = error.exit_code
        sys.exit(code)


class Command(TyperCommand):
    """A command whose summary is not cut where commands are listed."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole summary, whatever the limit."""
        return super().get_short_help_str(limit=1000)


def _without_values(message: str, arguments: Sequence[str]) -> str:
    """Return a message without the values that it quotes: a URL in the wrong place may hold a password."""
    for argument in arguments:
        for value in filter(None, (argument, argument.partition("=")[2])):
            message = message.replace(repr(value), "'***'")
    message = re.sub(r"(unexpected extra argument).*", r"\1", message, flags=re.DOTALL)
    message = re.sub(r"\S*(://|@)\S*", "***", message).replace("Value error, ", "")
    return "\n".join(escaped(line).plain for line in message.split("\n"))
