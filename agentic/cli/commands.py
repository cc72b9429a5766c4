"""Exit codes, help and usage errors of the commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from agentic.cli.completion import whole_words_in_bash
from agentic.cli.terminal import escaped, exit_in_one_line

# Typer does not export it.
UsageError: Final[Any] = typer.BadParameter.__base__


class Commands(TyperGroup):
    """A group of commands that report an error in one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; exit with 1 for an error, or 2 for a usage error, whose message contains no value."""
        with exit_in_one_line(), whole_words_in_bash():
            try:
                code = super().main(*args, **options | {"standalone_mode": False})
            except UsageError as error:
                arguments = args[0] if args else options.get("args")
                error.message = _redacted(error.message, sys.argv[1:] if arguments is None else arguments)
                error.show()
                code = error.exit_code
        sys.exit(code)


class Command(TyperCommand):
    """A command whose summary is not truncated in the list of commands."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole summary, whatever the limit."""
        return super().get_short_help_str(limit=1000)


def _redacted(message: str, arguments: Sequence[str]) -> str:
    """Redact the values that a message quotes: a URL in the wrong place may contain a password."""
    for argument in arguments:
        for value in filter(None, (argument, argument.partition("=")[2])):
            message = message.replace(repr(value), "'***'")
    message = re.sub(r"(unexpected extra argument).*", r"\1", message, flags=re.DOTALL)
    message = re.sub(r"\S*(://|@)\S*", "***", message).replace("Value error, ", "")
    return "\n".join(escaped(line).plain for line in message.split("\n"))
