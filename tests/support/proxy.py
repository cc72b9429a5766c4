"""A proxy between a client and a server that delays requests, and loses, cuts or delays replies."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, cast


class Proxy:
    """Forwards bytes to a port of this host, and injects faults into requests and replies.

    Attributes:
        target: The port to forward new connections to.
        answers_to_pass: The number of replies to forward; later ones are dropped, connections stay open. None: all.
        answers_to_lose: The number of next replies to drop; the connection is then reset.
        answers_to_cut: The number of next replies to cut in half; the connection is then reset.
        delay: Seconds to delay each reply.
        delayed: The number of replies delayed so far.
        lost: The number of replies lost or cut so far.
        held: The gates of the connections with blocked requests, see `hold_requests`.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        """Forward to the port `target`; with `tls`, accept TLS from clients."""
        self.target = target
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_clients: set[asyncio.StreamWriter] = set()
        self._gates: set[asyncio.Event] = set()
        self._hold = b""
        self.held: list[asyncio.Event] = []
        self._swallowed: set[asyncio.StreamWriter] = set()
        self.answers_to_pass: int | None = None
        self.answers_to_lose = 0
        self.answers_to_cut = 0
        self.delay = 0.0
        self.delayed = 0
        self.lost = 0

    @property
    def url(self) -> str:
        return f"redis{'s' if self._tls else ''}://127.0.0.1:{self.port}/0"

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def hold_requests(self, containing: bytes = b"") -> Callable[[], None]:
        """Block the requests of all open connections, or of those that send `containing` from now on.

        Returns:
            A function that delivers them, like a network, even if the client has closed its end meanwhile.
        """
        held = [] if containing else list(self._gates)
        for gate in held:
            gate.clear()
        self._hold, self.held = containing, held

        def release() -> None:
            self._hold = b""
            for gate in held:
                gate.set()

        return release

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for gate in self._gates:
            gate.set()
        for writer in self._writers:
            writer.transport.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def connections(self) -> int:
        """The number of connected clients."""
        return len(self._tasks)

    def reset(self) -> None:
        """Reset all connections, like a load balancer with idle ones."""
        for writer in self._writers:
            _linger(writer)
            writer.transport.abort()

    def reset_clients(self) -> None:
        """Reset the client ends of all connections; blocked requests are still delivered."""
        for writer in self._to_clients:
            _linger(writer)
            writer.transport.abort()

    def swallow(self) -> None:
        """Drop everything on the current connections and leave them open, like a NAT that lost them."""
        self._swallowed |= self._writers

    def stop_reading(self) -> None:
        """Stop reading from the current clients, like a hung host: not even a TLS close is read."""
        for writer in self._to_clients:
            cast("asyncio.ReadTransport", writer.transport).pause_reading()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        ends, gate = {writer, far_writer}, asyncio.Event()
        gate.set()
        self._writers |= ends
        self._to_clients.add(writer)
        self._gates.add(gate)
        ways = [
            asyncio.create_task(self._pass_on(reader, far_writer, gate)),
            asyncio.create_task(self._answer(far_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for each in ends:
            each.transport.abort()
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
        self._writers -= ends
        self._to_clients.discard(writer)
        self._gates.discard(gate)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self._hold and self._hold in data:
                    gate.clear()
                    self.held.append(gate)
                await gate.wait()
                if writer not in self._swallowed:
                    writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self.delay:
                    self.delayed += 1
                    await asyncio.sleep(self.delay)
                if self.answers_to_pass is not None:
                    if self.answers_to_pass == 0:
                        continue
                    self.answers_to_pass -= 1
                if self.answers_to_lose:
                    self.answers_to_lose -= 1
                    self.lost += 1
                    return
                if self.answers_to_cut:
                    self.answers_to_cut -= 1
                    self.lost += 1
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)


def _linger(writer: asyncio.StreamWriter) -> None:
    """Make closing the connection reset it."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
