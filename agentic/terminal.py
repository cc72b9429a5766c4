"""Standard output and standard error of the command: text as it stands, exact JSON, one line for each error."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from agentic.errors import RegistryError
from agentic.text import printable

INTERRUPTED: Final = 130
"""Exit code of a command that a signal stopped, as the shell has it for Ctrl-C."""


class OutputError(OSError):
    """Standard output or standard error cannot be written."""

    def __str__(self) -> str:
        return f"the output could not be written: {self.strerror}"


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


class _Stream(Console):
    """Writes text as it stands: no markup, no emoji codes, no folding."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:
        with _output_errors():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        # Rich would end the process here, in the middle of the event loop.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


out: Final = _Stream()
err: Final = _Stream(stderr=True)


def is_terminal() -> bool:
    """Tell whether standard output is a terminal; Rich's own answer depends on FORCE_COLOR and its like."""
    return sys.stdout.isatty()


def escaped(text: str) -> Text:
    """Return a whole text with its control characters escaped, free of markup."""
    return Text(printable(text, longest=None))


def print_json(value: bytes) -> None:
    """Print one encoded JSON value on a line."""
    _write(_json_text(value) + "\n")


def print_json_array(values: Iterable[bytes]) -> None:
    """Print encoded JSON values as an array, one a line."""
    _write("[" + ",\n ".join(map(_json_text, values)) + "]\n")


def _json_text(value: bytes) -> str:
    """Return the same JSON, with what a terminal could obey or cannot show written as JSON's own escapes."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = value.decode()
    if text.isprintable() and (unicode or text.isascii()):
        return text
    return "".join(c if c.isprintable() and (unicode or c.isascii()) else _json_escape(c) for c in text)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(rf"\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _write(text: str) -> None:
    with _output_errors():
        sys.stdout.write(text)
        sys.stdout.flush()


# --- how the command ends ---


@contextmanager
def exit_in_one_line() -> Iterator[None]:
    """Exit with 1 and a line on standard error for each fault of the user, the store or the output.

    Exits with 130 when interrupted. Whatever else is raised is a bug and keeps its traceback.
    """
    try:
        yield
        with _output_errors():
            sys.stdout.flush()
    except (RegistryError, OSError, KeyboardInterrupt, BaseExceptionGroup) as error:
        _drop_output()
        causes = list(_causes(error))
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            sys.exit(INTERRUPTED)
        if not all(isinstance(cause, (RegistryError, OSError)) for cause in causes):
            raise
        # A reader that has left, such as `head`, has all it wanted.
        told = [cause for cause in causes if not (isinstance(cause, OutputError) and cause.errno == errno.EPIPE)]
        for message in dict.fromkeys(map(str, told)):
            complain(message)
        sys.exit(1)


def complain(message: str) -> None:
    """Print an error as one line on standard error, as far as that can be written."""
    with suppress(OSError):
        err.print(Text.assemble(("error: ", "bold red"), escaped(message)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    else:
        yield error


def _drop_output() -> None:
    """Drop what standard output does not take: the interpreter would try once more when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- the process ---


def prepare_process() -> None:
    """Prepare the streams, the signals and the log of a process that runs the command and nothing else."""
    # Closed by the caller. Writing to a file that is open for reading fails as writing to a closed one should.
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows its code.
            stream.reconfigure(errors="backslashreplace")
    # Where SIGINT is ignored, as in a background job of a script, SIGTERM has to end the process by itself.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    logging.basicConfig(handlers=[_OneLine(logging.WARNING)])


@contextmanager
def without_log() -> Iterator[None]:
    """Log nothing while the body runs."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class _OneLine(logging.Handler):
    """Writes each record as one line on standard error, without a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage() if error is None else f"{record.getMessage()}: {type(error).__name__}: {error}"
        # Not by `err`: while a live table is shown, Rich puts a stream of its own here, which writes above the table.
        with suppress(OSError):
            sys.stderr.write(f"{record.levelname.lower()}: {printable(text)}\n")
