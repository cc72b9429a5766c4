"""The command's standard output and standard error: literal text, exact JSON, one line per error."""

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
    """A write to standard output or standard error failed."""

    def __str__(self) -> str:
        return f"the output could not be written: {self.strerror}"


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


class _Stream(Console):
    """Writes text literally, without markup or emoji codes; on a terminal, wraps long lines between words."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        options.setdefault("soft_wrap", not self.file.isatty())
        with _output_errors():
            super().print(*objects, **options)

    def note(self, text: str) -> None:
        """Print a secondary line, dimmed."""
        self.print(Text(text, style="dim"), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        # Rich would exit the process here, inside the event loop.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


out: Final = _Stream()
err: Final = _Stream(stderr=True)


def is_terminal() -> bool:
    """Return whether standard output is a terminal; Rich's answer also depends on variables such as FORCE_COLOR."""
    return sys.stdout.isatty()


def has_colours() -> bool:
    """Return whether standard output supports colours and they are not disabled."""
    return out.color_system is not None and not (out.no_color or out.legacy_windows)


def cut_mark() -> str:
    """Return a mark for cropped text that standard output can encode."""
    return "…" if _supports_unicode() else "~"


def _supports_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def escaped(text: str) -> Text:
    """Return a text, uncropped, with control characters escaped and no markup."""
    return Text(printable(text, longest=None))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines unchanged."""
    _write("".join(f"{line}\n" for line in lines))


def print_json(values: Iterable[bytes]) -> None:
    """Print encoded JSON values, one per line."""
    print_lines(_json_lines(values))


def print_json_array(values: Iterable[bytes]) -> None:
    """Print encoded JSON values as an array, one per line."""
    _write("[" + ",\n ".join(_json_lines(values)) + "]\n")


def _json_lines(values: Iterable[bytes]) -> Iterator[str]:
    """Yield the same JSON with control characters and unencodable characters as JSON escapes."""
    unicode = _supports_unicode()
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
    """For an error of the user, the store or the output, print one line on standard error and exit with 1.

    Any other exception is a bug and keeps its traceback.
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
        # A reader that closed the pipe, such as `head`, is no error to report.
        reported = [cause for cause in causes if not (isinstance(cause, OutputError) and cause.errno == errno.EPIPE)]
        for message in dict.fromkeys(map(str, reported)):
            complain(message)
        sys.exit(1)


def complain(message: str) -> None:
    """Print an error as one line on standard error; ignore a failed write."""
    with suppress(OSError):
        err.print(Text.assemble(("error: ", "bold red"), escaped(message)), soft_wrap=True)


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    else:
        yield error


def _drop_output() -> None:
    """Discard unwritable output: the interpreter would try to flush it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_cancellable(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; SIGINT, SIGTERM or SIGHUP cancels it, a second signal kills the process.

    Raises:
        SystemExit: A signal cancelled it; the exit code is 128 plus the signal number.
    """
    # Ignored signals stay ignored, such as SIGINT in a background job of a script.
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
            with suppress(RuntimeError):  # The loop is already closed.
                loop.call_soon_threadsafe(task.cancel)

        # Not asyncio's handler: on a second SIGINT it raises at any point in the event loop, which may then hang.
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
    """Exit the process with 1 and an error if the body takes longer.

    A hung name server or file system blocks threads that cannot be cancelled.
    """

    def exit_process() -> None:
        if message is not None:
            complain(message)
        os._exit(1)

    timer = threading.Timer(seconds, exit_process)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- the process ---


def prepare_process() -> None:
    """Set up the standard streams and logging of a process that only runs the command."""
    # The caller closed it. Writes to a file opened for reading fail, as they should for a closed stream.
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Escape characters that the terminal cannot encode.
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
        # Not `err`: while a live table is shown, Rich replaces sys.stderr by a stream that writes above the table.
        with suppress(OSError):
            sys.stderr.write(f"{record.levelname.lower()}: {printable(text)}\n")
