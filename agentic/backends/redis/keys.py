"""The names of all keys of a registry in Redis.

A registry's keys form families, each in one slot. A single server has one family, named by the prefix; its keys
`{prefix}:agent:{id}` are shared with the Go original. A cluster has 32 families, spread evenly over the slots.
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
        pattern: The MATCH pattern of a scan.
    """

    def __init__(self, prefix: str) -> None:
        self._agent = prefix.encode() + _AGENT
        self.pattern = _glob_escaped(self._agent) + b"*"

    def agent(self, agent_id: str) -> bytes:
        """Return the key of an agent's record."""
        return self._agent + agent_id.encode()

    def of_id(self, encoded: bytes) -> bytes:
        """Return the key of an agent's record, given its id as returned by `encoded_id`."""
        return self._agent + encoded

    def agents(self, ids: Iterable[str]) -> list[bytes]:
        """Return the keys of agents' records."""
        first = self._agent
        return [first + agent_id.encode() for agent_id in ids]

    def slot(self, agent_id: str) -> int:
        """Return the slot of an agent's family; always 0 on a single server."""
        return 0

    def own(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return the keys of a scan that belong to this registry."""
        return keys

    def by_slot(self, keys: Sequence[bytes]) -> Sequence[Sequence[int]]:
        """Return the indexes of the keys, grouped by slot."""
        return [range(len(keys))] if keys else []

    def probes(self) -> Sequence[bytes]:
        """Return one key of each family that belongs to no agent, because its id is empty."""
        return [self._agent]


class ShardedKeys(Keys):
    """The keys of a registry in a cluster."""

    def __init__(self, prefix: str) -> None:
        """Compute the families of a prefix.

        Raises:
            ConfigurationError: The prefix contains braces, which would change the slots of its keys.
        """
        if "{" in prefix or "}" in prefix:
            raise ConfigurationError("prefix: must not contain braces in a cluster")
        families = [_family(prefix, shard) for shard in range(SHARDS)]
        self._shards = [family + _AGENT for family in families]
        self._slots = [key_slot(family) for family in families]
        self.pattern = b"{" + _glob_escaped(prefix.encode()) + b":*}:agent:*"

    def agent(self, agent_id: str) -> bytes:
        """Return the key of an agent's record."""
        return self.of_id(agent_id.encode())

    def of_id(self, encoded: bytes) -> bytes:
        """Return the key of an agent's record, given its id as returned by `encoded_id`."""
        return self._shards[crc32(encoded) % SHARDS] + encoded

    def agents(self, ids: Iterable[str]) -> list[bytes]:
        """Return the keys of agents' records."""
        shards = self._shards
        return [shards[crc32(encoded) % SHARDS] + encoded for encoded in map(str.encode, ids)]

    def slot(self, agent_id: str) -> int:
        """Return the slot of an agent's family."""
        return self._slots[crc32(agent_id.encode()) % SHARDS]

    def own(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return the keys of a scan that belong to this registry; the pattern also matches longer prefixes."""
        shards, own = self._shards, []
        for key in keys:
            family, agent, encoded = key.partition(_AGENT)
            if shards[crc32(encoded) % SHARDS] == family + agent:
                own.append(key)
        return own

    def by_slot(self, keys: Sequence[bytes]) -> Sequence[Sequence[int]]:
        """Return the indexes of the keys, grouped by slot."""
        return by_family(keys)

    def probes(self) -> Sequence[bytes]:
        """Return one key of each family that belongs to no agent."""
        return self._shards


def by_family(keys: Sequence[bytes]) -> Sequence[Sequence[int]]:
    """Return the indexes of the keys, grouped by family."""
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        places[family_of(key)].append(at)
    return list(places.values())


def family_of(key: bytes) -> bytes:
    """Return the family of an agent's key."""
    return key[: key.find(_AGENT)]


def counter_key(family: bytes) -> bytes:
    """Return the key that stores the highest incarnation given out in a family."""
    return family + b":incarnation"


def drains_key(family: bytes) -> bytes:
    """Return the key that stores the drains of the agents in a family."""
    return family + b":drains"


def writer_key(family: bytes, writer: str) -> bytes:
    """Return the key that stores the highest generation of a registry object's writes in a family."""
    return family + b":writer:" + writer.encode()


def marks_key(family: bytes, writer: str) -> bytes:
    """Return the key that stores which agents a registry object's last call marked in a family."""
    return family + b":marks:" + writer.encode()


def family_of_marks(key: bytes) -> bytes:
    """Return the family of a key from `marks_key`."""
    return key.rpartition(b":marks:")[0]


def id_in(key: bytes) -> str:
    """Return the agent id in the key of a record."""
    return encoded_id(key).decode(errors="replace")


def encoded_id(key: bytes) -> bytes:
    """Return the agent id in a key as bytes; valid UTF-8 unless another program wrote the key."""
    return key.partition(_AGENT)[2]


def valid_prefix(prefix: object) -> str:
    """Validate a prefix; no two valid prefixes can produce the same key.

    Raises:
        ConfigurationError: It is not a string, is empty, or contains the separator between a prefix and an id.
    """
    if not isinstance(prefix, str) or not prefix:
        raise ConfigurationError("prefix: must be a non-empty string")
    try:
        encoded = prefix.encode()
    except UnicodeEncodeError:
        raise ConfigurationError("prefix: contains a lone surrogate") from None
    if _AGENT in encoded + b":":
        raise ConfigurationError(
            "prefix: must neither contain ':agent:' nor end with ':agent': agents of two prefixes could have the same "
            "key"
        )
    return prefix


def _family(prefix: str, shard: int) -> bytes:
    """Return a family with a slot in this shard's range of slots."""
    first = shard * _SLOTS_OF_SHARD
    for number in count():
        tag = f"{prefix}:{shard}.{number}".encode()
        if first <= key_slot(tag) < first + _SLOTS_OF_SHARD:
            return b"{" + tag + b"}"
    raise AssertionError("unreachable: numbers do not end")


def _glob_escaped(text: bytes) -> bytes:
    r"""Return a pattern that matches exactly this text: escape `*`, `?`, `[`, `]`, `^`, `-` and `\`."""
    return re.sub(rb"([*?\[\]^\\-])", rb"\\\1", text)
