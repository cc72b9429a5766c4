"""Redis Cluster: keys of one slot go together, and every primary gets its part side by side."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agentic.backends.redis_client import backend_error
from agentic.backends.redis_servers import SCRIPTS, WHO_ARE_YOU, Command, Page, Scanned, Servers, scanned_by
from agentic.errors import BackendError


class Cluster(Servers):
    """Redis Cluster: what concerns keys of one slot is one command, and each primary gets its commands in one go.

    A primary that fails fails its own agents alone; a walk of the fleet fails with any of them.
    """

    def __init__(self, client: aioredis.RedisCluster, max_connections: int) -> None:
        super().__init__(max_connections)
        self._client = client
        self._looking: asyncio.Task[None] | None = None

    async def ping(self) -> None:
        await self._client.initialize()
        await asyncio.gather(*(node.execute_command("PING") for node in self._client.get_primaries()))

    async def _close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._client.aclose()

    async def _script(
        self, name: str, keys: Sequence[bytes], common: Command, each: Sequence[Command], *, repeatable: bool
    ) -> list[Any]:
        sha, text = SCRIPTS[name]
        groups = _by_slot(keys)
        commands = [
            (len(group), *(keys[at] for at in group), *common, *(argument for at in group for argument in each[at]))
            for group in groups
        ]
        replies = await self._send([("EVALSHA", sha, *rest) for rest in commands], keys, groups, repeatable)
        unknown = [at for at, reply in enumerate(replies) if isinstance(_cause(reply), NoScriptError)]
        if unknown:
            again = [("EVAL", text, *commands[at]) for at in unknown]
            answers = await self._send(again, keys, [groups[at] for at in unknown], repeatable)
            for at, answer in zip(unknown, answers, strict=True):
                replies[at] = answer
        return _for_each_key(keys, groups, replies)

    async def records(self, keys: Sequence[bytes]) -> list[Any]:
        groups = _by_slot(keys)
        commands = [("MGET", *(keys[at] for at in group)) for group in groups]
        return _for_each_key(keys, groups, await self._send(commands, keys, groups, repeatable=True))

    async def nodes(self) -> Sequence[Any]:
        async def call() -> list[ClusterNode]:
            await self._client.initialize()
            await self._client.nodes_manager.initialize()
            return sorted(self._client.get_primaries(), key=lambda node: str(node.name))

        return await self.driven(call, repeatable=True)

    def layout(self) -> object:
        return {slot: nodes[0].name for slot, nodes in self._client.nodes_manager.slots_cache.items()}

    async def ask(self, node: Any, *command: Any) -> Any:
        return await self.driven(lambda: node.execute_command(*command), repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        records, scanned = await asyncio.gather(self.records(keys), self._scanned(node, scan))
        for record in records:
            if isinstance(record, BackendError):
                raise record
        return records, scanned

    async def _scanned(self, node: ClusterNode, scan: Command | None) -> Scanned | None:
        if scan is None:
            return None
        commands = (WHO_ARE_YOU, scan)

        async def call() -> Scanned:
            sent = [PipelineCommand(at, *command) for at, command in enumerate(commands)]
            await node.execute_pipeline(sent)
            return scanned_by(*(each.result for each in sent))

        return await self.driven(call, repeatable=True)

    async def broken(self, error: Exception) -> None:
        # Some other node may have taken the slots over.
        await asyncio.shield(self._look_again())

    def given_up(self) -> None:
        if not self._closed:
            self._look_again()

    def _look_again(self) -> asyncio.Task[None]:
        """Find out where the slots are, beside the calls: one that is given up leaves the next ones the answer."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._read_slots())
        return self._looking

    async def _read_slots(self) -> None:
        with suppress(RedisError, RedisClusterException, OSError):  # What is wrong is told by the call that goes on.
            await self._client.nodes_manager.initialize()

    async def _send(
        self, commands: Sequence[Command], keys: Sequence[bytes], groups: Sequence[Sequence[int]], repeatable: bool
    ) -> list[Any]:
        """Send each command to the primary of its keys, side by side; return each one's answer or error."""
        by_node: defaultdict[str, list[int]] = defaultdict(list)
        if self._client.get_default_node() is None:
            await self.nodes()
        for at, group in enumerate(groups):
            by_node[self.node_of(keys[group[0]])].append(at)
        replies: list[Any] = [None] * len(commands)

        async def send(places: list[int]) -> None:
            async def call() -> list[Any]:
                pipeline = self._client.pipeline()
                for at in places:
                    pipeline.execute_command(*commands[at])
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
                broken = _broken_connection(answers)
                if broken is not None and repeatable:
                    raise broken
                if broken is not None:
                    await self.broken(broken)
                return answers

            try:
                answers: Sequence[Any] = await self.driven(call, repeatable=repeatable)
            except BackendError as error:
                answers = [error] * len(places)
            for at, answer in zip(places, answers, strict=True):
                replies[at] = _mapped(answer)

        await asyncio.gather(*map(send, by_node.values()))
        return replies

    def node_of(self, key: bytes) -> str:
        """Return the name of the primary that holds a key, as far as is known; empty where it is not."""
        try:
            return str(self._client.nodes_manager.get_node_from_slot(key_slot(key)).name)
        except RedisClusterException:
            return ""


def _by_slot(keys: Sequence[bytes]) -> list[list[int]]:
    """Return the places of the keys, those of one slot together."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        places[key_slot(key)].append(at)
    return list(places.values())


def _for_each_key(keys: Sequence[bytes], groups: Sequence[Sequence[int]], replies: Sequence[Any]) -> list[Any]:
    outcomes: list[Any] = [None] * len(keys)
    for group, reply in zip(groups, replies, strict=True):
        for place, at in enumerate(group):
            outcomes[at] = reply if isinstance(reply, BackendError) else reply[place]
    return outcomes


def _broken_connection(answers: Sequence[Any]) -> Exception | None:
    """Return what the driver says of a broken connection; it puts that among the answers."""
    return next((each for each in answers if isinstance(each, (RedisConnectionError, RedisTimeoutError))), None)


def _mapped(answer: Any) -> Any:
    if not isinstance(answer, Exception) or isinstance(answer, BackendError):
        return answer
    error = backend_error(answer, "Redis failed")
    error.__cause__ = answer
    return error


def _cause(reply: Any) -> BaseException | None:
    return reply.__cause__ if isinstance(reply, BackendError) else None
