"""The registry in a SQLite file: its options, checked before the file is touched."""

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
    open. Write-ahead logging lets others read and write the file meanwhile. Its store's clock is `clock`; an agent
    past its `ttl` is gone for every call, and deleted from the file by `reap`.

    Attributes:
        path: As given.
        clock: As given.
        synchronous: As given.
        create: As given.
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
            path: The file, created when it is not there; its folder must exist. None stands for
                `~/.config/agentic/registry.db`, whose folder is created; both are readable by their owner alone.
            ttl: Seconds after its last registration or heartbeat at which an agent is **gone**; None keeps it.
            timeout: Seconds a call may take, waiting for other processes' writes included.
            stale_after: Seconds of silence after which a reaper marks an agent **offline**, by default.
            wait: Seconds for which opening tries again while the store is unavailable.
            clock: Returns the current instant as an aware `datetime`; called in the connection's thread.
            synchronous: What a power failure may take. `"NORMAL"`: the last writes before it, never the file's
                consistency; a crash of the process takes nothing. `"FULL"`: nothing that was acknowledged, at the price
                of one sync of the disk for each transaction.
            create: Make what is not there yet: the file, its table, and the default file's folder. False, for programs
                that only look: opening raises `BackendRejectedError` where there is no registry, and makes nothing.

        Raises:
            ConfigurationError: An option is wrong.
        """
        backend = SQLiteBackend(path, ttl=ttl, timeout=timeout, clock=clock, synchronous=synchronous, create=create)
        super().__init__(backend, stale_after=stale_after, wait=wait)
        self.path, self.clock = backend.path, backend.clock
        self.synchronous, self.create = backend.synchronous, backend.create

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return the file."""
        return {"path": url.file()}

    @classmethod
    @contextmanager
    def scratch(cls, **options: Any) -> Iterator[Self]:
        """Make a registry in a temporary file."""
        with TemporaryDirectory(prefix="agentic-demo-", ignore_cleanup_errors=True) as folder:
            options |= {"path": Path(folder) / "registry.db", "create": True}
            yield cls(**options)
