"""Groups of servers: a cluster of six, and a primary with a replica and three sentinels."""

from __future__ import annotations

import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from agentic.testing.servers import RedisServer, free_port, server_program

PRIMARIES = 3
SLOTS = 16_384
SERVICE = "fleet"


def wait_for(predicate: Callable[[], bool], description: str, *, within: float = 30.0) -> None:
    """Poll until the predicate is true, from synchronous code."""
    end = time.monotonic() + within
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {within:g} s: {description}")
        time.sleep(0.02)


class Fleet(ABC):
    """Servers that run while the body of a `with` does."""

    @abstractmethod
    def start(self) -> None:
        """Start the servers, and wait until they know one another."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what runs, also after a failed start."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class RedisCluster(Fleet):
    """Three primaries with a replica each."""

    def __init__(self) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0")
        self.servers = [RedisServer(*options) for _ in range(2 * PRIMARIES)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:PRIMARIES])

    def ask(self, server: RedisServer, *command: Any) -> Any:
        with redis.Redis(port=server.port, decode_responses=True) as client:
            return client.execute_command(*command)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        for index, server in enumerate(self.servers[:PRIMARIES]):
            first, last = index * SLOTS // PRIMARIES, (index + 1) * SLOTS // PRIMARIES - 1
            self.ask(server, "CLUSTER", "ADDSLOTS", *range(first, last + 1))
            self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            self.ask(self.servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port)
        wait_for(lambda: all(self._knows_all(server) for server in self.servers), "all nodes know one another")
        for primary, replica in zip(self.servers[:PRIMARIES], self.servers[PRIMARIES:], strict=True):
            self.ask(replica, "CLUSTER", "REPLICATE", self.node_id(primary))
        wait_for(lambda: all(self.is_ok(server) for server in self.servers), "the cluster is up")
        wait_for(lambda: all(self._in_sync(server) for server in self.servers[PRIMARIES:]), "the replicas are in sync")

    def node_id(self, server: RedisServer) -> str:
        return str(self.ask(server, "CLUSTER", "MYID"))

    def is_ok(self, server: RedisServer) -> bool:
        return "cluster_state:ok" in str(self.ask(server, "CLUSTER", "INFO"))

    def _knows_all(self, server: RedisServer) -> bool:
        nodes = str(self.ask(server, "CLUSTER", "NODES"))
        return len(nodes.splitlines()) == len(self.servers) and "handshake" not in nodes

    def _in_sync(self, server: RedisServer) -> bool:
        with redis.Redis(port=server.port) as client:
            info: Any = client.info("replication")
            return bool(info.get("master_link_status") == "up")

    @contextmanager
    def joined_by_another(self) -> Iterator[RedisServer]:
        """Add a seventh server without slots."""
        with RedisServer(*self.servers[0].options) as server:
            self.ask(self.servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port)
            everyone = [*self.servers, server]

            def all_know_it() -> bool:
                nodes = [str(self.ask(each, "CLUSTER", "NODES")) for each in everyone]
                return all(len(each.splitlines()) == len(everyone) and "handshake" not in each for each in nodes)

            wait_for(all_know_it, "all nodes know the seventh")
            wait_for(lambda: self.is_ok(server), "the seventh finds the cluster up")
            yield server

    def move_slots(self, count: int, source: RedisServer, target: RedisServer) -> None:
        """Move the first `count` slots of a primary to another, key by key, like a resharding tool."""
        source_id, target_id = self.node_id(source), self.node_id(target)
        told = dict.fromkeys(each.port for each in (target, source, *self.servers[:PRIMARIES]))
        with ExitStack() as stack:
            clients = {port: stack.enter_context(redis.Redis(port=port)) for port in told}
            for slot in range(count):
                clients[target.port].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
                clients[source.port].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
                if clients[source.port].execute_command("CLUSTER", "COUNTKEYSINSLOT", slot):
                    self._migrate(slot, source, target, 10_000)
                for client in clients.values():
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer, keys: int = 0) -> list[bytes]:
        """Start to move a slot and move some of its keys; return them."""
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))
        return self._migrate(slot, source, target, keys)

    def finish_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the remaining keys of a slot, and announce its new owner to every primary."""
        self._migrate(slot, source, target, 10_000)
        for server in (target, source, *self.servers[:PRIMARIES]):
            self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target))

    def _migrate(self, slot: int, source: RedisServer, target: RedisServer, count: int) -> list[bytes]:
        with redis.Redis(port=source.port) as from_:
            keys: Any = from_.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count) if count else []
            for key in keys:
                from_.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            return list(keys)

    def stop(self) -> None:
        for server in self.servers:
            server.__exit__(None, None, None)


class SentinelTrio(Fleet):
    """A primary, a replica, and three sentinels that monitor them."""

    def __init__(self) -> None:
        self.servers = [RedisServer("--repl-diskless-sync-delay", "0") for _ in range(2)]
        self.sentinels: list[tuple[subprocess.Popen[bytes], int]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="agentic-sentinel-")

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for _, port in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def primary_port(self) -> int:
        with redis.Redis(port=self.sentinels[0][1], decode_responses=True) as client:
            found: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(found[1])

    def server_at(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        with redis.Redis(port=self.servers[1].port) as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", self.servers[0].port)
            wait_for(lambda: self._link_is_up(replica), "the replica is in sync")
        for number in range(3):
            self.sentinels.append(self._sentinel(number))
        wait_for(self._sentinels_agree, "the sentinels know one another and the replica")

    def _link_is_up(self, replica: redis.Redis) -> bool:
        info: Any = replica.info("replication")
        return bool(info.get("master_link_status") == "up")

    def _sentinel(self, number: int) -> tuple[subprocess.Popen[bytes], int]:
        port = free_port()
        file = Path(self._folder.name) / f"{number}.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 800\nsentinel failover-timeout {SERVICE} 3000\n"
        )
        process = subprocess.Popen([server_program(), str(file), "--sentinel"], stdout=subprocess.DEVNULL)
        wait_for(lambda: _answers(port), "a sentinel answers")
        return process, port

    def _sentinels_agree(self) -> bool:
        for _, port in self.sentinels:
            with redis.Redis(port=port, decode_responses=True) as client:
                others: Any = client.execute_command("SENTINEL", "SENTINELS", SERVICE)
                replicas: Any = client.execute_command("SENTINEL", "REPLICAS", SERVICE)
            if len(others) < 2 or not replicas:
                return False
        return True

    def stop(self) -> None:
        for process, _ in self.sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            server.__exit__(None, None, None)
        self._folder.cleanup()


def _answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
