"""Standard output and standard error of the command: text as it stands, exact JSON, one line for each error."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.text import Text

from agentic.errors import RegistryError
from agentic.text import printable

_SIGNALS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_DEFAULT_HANDLERS: Final = (signal.SIG_DFL, signal.default_int_handler)

T = TypeVar("T")


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
    """Writes text as it stands: no markup, no emoji codes; a terminal gets long lines wrapped between words."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        options.setdefault("soft_wrap", not self.file.isatty())
        with _output_errors():
            super().print(*objects, **options)

    def note(self, text: str) -> None:
        """Print one line that is beside the point."""
        self.print(Text(text, style="dim"), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        # Rich would end the process here, in the middle of the event loop.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


out: Final = _Stream()
err: Final = _Stream(stderr=True)


def is_terminal() -> bool:
    """Tell whether standard output is a terminal; Rich's own answer depends on FORCE_COLOR and its like."""
    return sys.stdout.isatty()


def has_colours() -> bool:
    """Tell whether standard output takes the codes for colours, and is to have them."""
    return out.color_system is not None and not (out.no_color or out.legacy_windows)


def cut_mark() -> str:
    """Return the character that standard output can show for the rest of a cropped text."""
    return "…" if _takes_unicode() else "~"


def _takes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def escaped(text: str) -> Text:
    """Return a whole text with its control characters escaped, free of markup."""
    return Text(printable(text, longest=None))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they stand."""
    _write("".join(f"{line}\n" for line in lines))


def print_json(values: Iterable[bytes]) -> None:
    """Print encoded JSON values, one a line."""
    print_lines(_json_lines(values))


def print_json_array(values: Iterable[bytes]) -> None:
    """Print encoded JSON values as an array, one a line."""
    _write("[" + ",\n ".join(_json_lines(values)) + "]\n")


def _json_lines(values: Iterable[bytes]) -> Iterator[str]:
    """Yield the same JSON, with what a terminal could obey or cannot show written as JSON's own escapes."""
    unicode = _takes_unicode()
    for value in values:
        text = value.decode()
        if text.isprintable() and (unicode or text.isascii()):
            yield text
        else:
            yield "".join(c if c.isprintable() and (unicode or c.isascii()) else _json_escape(c) for c in text)


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

    Whatever else is raised is a bug and keeps its traceback.
    """
    try:
        yield
        with _output_errors():
            sys.stdout.flush()
    except (RegistryError, OSError, ExceptionGroup) as error:
        _drop_output()
        causes = list(_causes(error))
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
        err.print(Text.assemble(("error: ", "bold red"), escaped(message)), soft_wrap=True)


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
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


def run_cancellable(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; SIGINT, SIGTERM or SIGHUP cancels it, and a second one ends the process at once.

    Raises:
        SystemExit: A signal cancelled it; the code is 128 and the number of the signal.
    """
    # One that is ignored, as SIGINT is in a background job of a script, stays ignored.
    defaults = {
        number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) in _DEFAULT_HANDLERS
    }
    stopped_by = 0

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def stop(number: int, _frame: object) -> None:
            nonlocal stopped_by
            stopped_by = number
            for each in defaults:
                signal.signal(each, signal.SIG_DFL)
            with suppress(RuntimeError):  # The loop has ended already.
                loop.call_soon_threadsafe(task.cancel)

        # Not asyncio's own handler: for a second SIGINT it raises wherever the event loop is, which may never end then.
        for each in defaults:
            signal.signal(each, stop)
        return await task

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        sys.exit(128 + stopped_by)
    finally:
        for number, handler in defaults.items():
            signal.signal(number, handler)


@contextmanager
def ends_within(seconds: float, message: str | None = None) -> Iterator[None]:
    """End the process with 1 and an error when the body lasts longer, whatever it waits for.

    A name server or a file system that hangs holds threads which nothing can cancel.
    """

    def give_up() -> None:
        if message is not None:
            complain(message)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- the process ---


def prepare_process() -> None:
    """Prepare the streams and the log of a process that runs the command and nothing else."""
    # Closed by the caller. Writing to a file that is open for reading fails as writing to a closed one should.
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows its code.
            stream.reconfigure(errors="backslashreplace")
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
