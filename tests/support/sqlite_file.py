"""Shared by the tests of SQLite: other processes, mounts, and checks of a file from outside."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

from agentic.testing import wait_until

COLUMNS = (
    "name TEXT, capabilities TEXT, status TEXT, last_heartbeat TEXT, "
    "current_load INTEGER, max_load INTEGER, registered_at TEXT"
)
TABLE_WITHOUT_CONSTRAINTS = f"CREATE TABLE agents (id TEXT PRIMARY KEY, {COLUMNS})"

_IMPORTS = """
    import asyncio, os, sqlite3, sys, time
    from agentic import AgentInfo, BackendError, SQLiteRegistry
"""
_HOLD = """
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
    for statement in sys.argv[2:]:
        db.execute(statement).fetchall()
    print("held", flush=True)
    sys.stdin.read()
"""
_LOOK = """
    db = sqlite3.connect(sys.argv[1], timeout=20)
    print(*[agent_id for (agent_id,) in db.execute("SELECT id FROM agents")])
    db.close()
"""


async def wait_until_unlocked(path: str | Path) -> None:
    """Wait until no connection has a write transaction open on a file."""

    def is_unlocked() -> bool:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db, suppress(sqlite3.OperationalError):
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
            return True
        return False

    await wait_until(is_unlocked, "no transaction is open")


def spawn(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a process that runs a script."""
    code = textwrap.dedent(_IMPORTS) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill the process at the end, also if the test fails."""
    with process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def locked_by_another_process(path: Path, *statements: str) -> AsyncIterator[None]:
    """Run the statements in another process and keep its locks during the body."""
    with killed_at_last(spawn(_HOLD, path, *statements)) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
        yield


async def seen_by_another_process(path: Path) -> set[str]:
    """Return the ids that another process finds; it opens the file and closes it like a last connection."""
    process = spawn(_LOOK, path)
    found, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error
    return set(found.decode().split())


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mount a tmpfs on a new folder; yield False if that is not permitted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True
    )
    yield done.returncode == 0
    if done.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def integrity(path: Path) -> str:
    """Return the result of SQLite's integrity check of a file."""
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("PRAGMA integrity_check").fetchone()[0])
