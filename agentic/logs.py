"""Structured logging: each record has a sentence for people, and fields for programs that read logs."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class FieldLogger(_Adapter):
    """A logger that adds the same fields to every record, in addition to the `extra` of each call.

    This library's fields: `store` (its name, as in `AgentRegistry.store`), `agent_id`, `count` (of agents) and
    `failed_tries` (in a row).
    """

    def __init__(self, logger: logging.Logger, **fields: object) -> None:
        super().__init__(logger, fields)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the fields to the call's `extra`."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class BackgroundLogs:
    """Writes log records in a thread of their own, so that their callers never wait for a logging handler."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def log(self, log: FieldLogger) -> FieldLogger:
        """Return a logger that logs as another one does, but in the thread."""
        return _BackgroundLogger(log, self._put)

    def _put(self, call: Callable[[], object]) -> None:
        if self._is_closed:
            call()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="agentic logs", daemon=True)
            self._thread.start()
        self._calls.put(call)

    def _write(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def close(self) -> None:
        """Write what is left and end the thread; wait for that for at most a second. Later calls log at once."""
        self._is_closed = True
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(1)


class _BackgroundLogger(FieldLogger):
    def __init__(self, log: FieldLogger, put: Callable[[Callable[[], object]], object]) -> None:
        super().__init__(log.logger, **(log.extra or {}))
        self._put = put

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log in the other thread."""
        self._put(partial(super().log, level, msg, *args, **kwargs))
