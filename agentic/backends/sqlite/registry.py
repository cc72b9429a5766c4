"""The registry in a SQLite file. Its options are checked before the file is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from agentic.backends.sqlite.backend import SQLiteBackend
from agentic.clock import Clock, system_clock
from agentic.registry import AgentRegistry
from agentic.urls import StoreURL


class SQLiteRegistry(AgentRegistry):
    """A registry in a SQLite file, or in memory with the path `":memory:"`.

    Every change is one transaction, run in one step in the connection's own thread, so a cancelled call leaves none
    open. With write-ahead logging, other processes can use the file at the same time. `clock` is the store's clock. An
    agent past its `ttl` is gone for every call; `reap` deletes it from the file.

    Attributes:
        path: The file.
        clock: The store's clock.
        synchronous: `"NORMAL"` or `"FULL"`.
        create: Whether opening creates what is missing.
    """

    backend: SQLiteBackend
    _logger = logging.getLogger("agentic.sqlite")

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | timedelta = 5.0,
        stale_after: float | timedelta = 30.0,
        wait: float | timedelta = 0.0,
        clock: Clock = system_clock,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        create: bool = True,
    ) -> None:
        """Check the options; no I/O.

        Args:
            path: The file, created if absent; its folder must exist. None means `~/.config/agentic/registry.db`, whose
                folder is created; only their owner can read either.
            ttl: Seconds after its last registration or heartbeat at which an agent is **gone**; None keeps it.
            timeout: Seconds a call may take, including the wait for other processes' writes.
            stale_after: Seconds of silence after which a reaper marks an agent **offline**, by default.
            wait: Seconds for which opening is retried while the store is unavailable.
            clock: Returns the current instant as an aware `datetime`; called in the connection's thread.
            synchronous: Durability. With `"NORMAL"` a power failure may lose the last writes, but never corrupts the
                file; a crash of the process loses nothing. With `"FULL"` no acknowledged write is lost, at the cost of
                one disk sync per transaction.
            create: Create what is missing: the file, its table, and the default file's folder. With False, opening
                raises `BackendRejectedError` if there is no registry, and creates nothing.

        Raises:
            ConfigurationError: An option is wrong.
        """
        backend = SQLiteBackend(path, ttl=ttl, timeout=timeout, clock=clock, synchronous=synchronous, create=create)
        super().__init__(backend, stale_after=stale_after, wait=wait)
        self.path, self.clock = backend.path, backend.clock
        self.synchronous, self.create = backend.synchronous, backend.create

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return the path of the file."""
        return {"path": url.file()}

    @classmethod
    @contextmanager
    def scratch(cls, **options: Any) -> Iterator[Self]:
        """Make a registry in a temporary file."""
        with TemporaryDirectory(prefix="agentic-demo-", ignore_cleanup_errors=True) as folder:
            options |= {"path": Path(folder) / "registry.db", "create": True}
            yield cls(**options)
