"""Every key that a registry has in Redis.

A registry's keys are in families, which lie in one slot each. On one server there is one family, whose name is the
prefix: `{prefix}:agent:{id}` is shared with the Go original. In a cluster there are 32, spread evenly over the slots.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Final
from zlib import crc32

from redis.crc import key_slot

from agentic.errors import ConfigurationError

SHARDS: Final = 32
SLOTS: Final = 16_384
_SLOTS_OF_SHARD: Final = SLOTS // SHARDS
_AGENT: Final = b":agent:"


class Keys:
    """The keys of a registry on one server.

    Attributes:
        pattern: What a scan has to ask for.
    """

    def __init__(self, prefix: str) -> None:
        self._agent = prefix.encode() + _AGENT
        self.pattern = _glob_escaped(self._agent) + b"*"

    def agent(self, agent_id: str) -> bytes:
        """Return the key of an agent's record."""
        return self._agent + agent_id.encode()

    def of_id(self, encoded: bytes) -> bytes:
        """Return the key of the record of an agent whose id is given as `encoded_id` returns it."""
        return self._agent + encoded

    def agents(self, ids: Iterable[str]) -> list[bytes]:
        """Return the keys of agents' records."""
        first = self._agent
        return [first + agent_id.encode() for agent_id in ids]

    def slot(self, agent_id: str) -> int:
        """Return the slot in which all keys of an agent's family lie; one server has but one."""
        return 0

    def own(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return those keys of a scan that are this registry's."""
        return keys

    def by_slot(self, keys: Sequence[bytes]) -> Sequence[Sequence[int]]:
        """Return the places of the keys, those of one slot together."""
        return [range(len(keys))] if keys else []

    def probes(self) -> Sequence[bytes]:
        """Return a key of each family that no agent has, for an id is not empty."""
        return [self._agent]


class ShardedKeys(Keys):
    """The keys of a registry in a cluster."""

    def __init__(self, prefix: str) -> None:
        """Find the families.

        Raises:
            ConfigurationError: The prefix has braces, which would decide on the slots of its keys.
        """
        if "{" in prefix or "}" in prefix:
            raise ConfigurationError("prefix: must have no braces in a cluster")
        families = [_family(prefix, shard) for shard in range(SHARDS)]
        self._shards = [family + _AGENT for family in families]
        self._slots = [key_slot(family) for family in families]
        self.pattern = b"{" + _glob_escaped(prefix.encode()) + b":*}:agent:*"

    def agent(self, agent_id: str) -> bytes:
        """Return the key of an agent's record."""
        return self.of_id(agent_id.encode())

    def of_id(self, encoded: bytes) -> bytes:
        """Return the key of the record of an agent whose id is given as `encoded_id` returns it."""
        return self._shards[crc32(encoded) % SHARDS] + encoded

    def agents(self, ids: Iterable[str]) -> list[bytes]:
        """Return the keys of agents' records."""
        shards = self._shards
        return [shards[crc32(encoded) % SHARDS] + encoded for encoded in map(str.encode, ids)]

    def slot(self, agent_id: str) -> int:
        """Return the slot in which all keys of an agent's family lie."""
        return self._slots[crc32(agent_id.encode()) % SHARDS]

    def own(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return those keys of a scan that are this registry's; the pattern matches those of longer prefixes too."""
        shards, own = self._shards, []
        for key in keys:
            family, agent, encoded = key.partition(_AGENT)
            if shards[crc32(encoded) % SHARDS] == family + agent:
                own.append(key)
        return own

    def by_slot(self, keys: Sequence[bytes]) -> Sequence[Sequence[int]]:
        """Return the places of the keys, those of one slot together."""
        return by_family(keys)

    def probes(self) -> Sequence[bytes]:
        """Return a key of each family that no agent has."""
        return self._shards


def by_family(keys: Sequence[bytes]) -> Sequence[Sequence[int]]:
    """Return the places of the keys, those of one family together."""
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        places[family_of(key)].append(at)
    return list(places.values())


def family_of(key: bytes) -> bytes:
    """Return the family of an agent's key."""
    return key[: key.find(_AGENT)]


def writer_key(family: bytes, writer: str) -> bytes:
    """Return the key of the highest generation with which a registry object has written in a family."""
    return family + b":writer:" + writer.encode()


def marks_key(family: bytes, writer: str) -> bytes:
    """Return the key of the agents that a registry object has marked last in a family."""
    return family + b":marks:" + writer.encode()


def family_of_marks(key: bytes) -> bytes:
    """Return the family of a key that `marks_key` has made."""
    return key.rpartition(b":marks:")[0]


def id_in(key: bytes) -> str:
    """Return the id of the agent whose record a key holds."""
    return encoded_id(key).decode(errors="replace")


def encoded_id(key: bytes) -> bytes:
    """Return that id as the key has it: UTF-8, unless another program has written the key."""
    return key.partition(_AGENT)[2]


def valid_prefix(prefix: object) -> str:
    """Return a prefix that keeps a registry's keys apart from those of every other prefix.

    Raises:
        ConfigurationError: It is no text, is empty, or could be taken for another prefix and the begin of an id.
    """
    if not isinstance(prefix, str) or not prefix:
        raise ConfigurationError("prefix: must be a string that is not empty")
    try:
        encoded = prefix.encode()
    except UnicodeEncodeError:
        raise ConfigurationError("prefix: holds a lone surrogate") from None
    if _AGENT in encoded + b":":
        raise ConfigurationError(
            "prefix: must neither contain ':agent:' nor end with ':agent', or an agent of one prefix could have the "
            "key of another one's"
        )
    return prefix


def _family(prefix: str, shard: int) -> bytes:
    """Return a family whose slot lies in the part of all slots that is this shard's."""
    first = shard * _SLOTS_OF_SHARD
    for number in count():
        tag = f"{prefix}:{shard}.{number}".encode()
        if first <= key_slot(tag) < first + _SLOTS_OF_SHARD:
            return b"{" + tag + b"}"
    raise AssertionError("unreachable: numbers do not end")


def _glob_escaped(text: bytes) -> bytes:
    r"""Return a pattern that matches this text alone: `*`, `?`, `[`, `]`, `^`, `-` and `\` escaped."""
    return re.sub(rb"([*?\[\]^\\-])", rb"\\\1", text)
