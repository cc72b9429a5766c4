"""Findings of `agentic doctor` about a Redis server."""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import NoPermissionError

from agentic.backends.redis.keys import Keys
from agentic.backends.redis.scan import LONGEST_STEP
from agentic.backends.redis.servers import Servers
from agentic.errors import BackendRejectedError
from agentic.findings import READS_ONLY, Finding, Level

MIN_VERSION: Final = (6, 2)
NO_EVICTION: Final = "noeviction"
MANY_KEYS: Final = 10_000
"""Number of keys in a database below which foreign keys cost nothing."""

MAX_FOREIGN: Final = 0.5


async def findings_of(servers: Servers, keys: Keys, node: Any) -> list[Finding]:
    """Return the findings about a server; in a cluster, with its name."""
    findings = [*await _facts(servers, keys, node), await _scripts(servers, keys, node)]
    return findings if node is None else [_for_node(finding, node) for finding in findings]


async def _facts(servers: Servers, keys: Keys, node: Any) -> list[Finding]:
    try:
        info = await servers.ask(node, "INFO")
    except BackendRejectedError as error:
        advice = f"grant +info, so that the server can be examined and restarts during a scan are detected ({error})"
        return [Finding(Level.NOTE, "server", "INFO is refused", advice)]
    findings = [_version(info), _eviction(info), _memory(info), _persistence(info), _role(info)]
    return [*findings, await _keys(servers, keys, node, info)]


async def _keys(servers: Servers, keys: Keys, node: Any, info: dict[str, Any]) -> Finding:
    """Count the keys that a scan reads, and estimate the share of foreign keys by one SCAN call."""
    there = int(info.get(f"db{servers.database}", {}).get("keys", 0))
    if there < MANY_KEYS:
        return Finding(Level.OK, "keys", f"{there:,} in the database")
    scan = ("SCAN", 0, "MATCH", keys.pattern, "COUNT", LONGEST_STEP)
    _, found = await servers.ask(node, *scan)
    foreign = max(0.0, 1 - len(keys.own(found)) / LONGEST_STEP)
    if foreign < MAX_FOREIGN:
        return Finding(Level.OK, "keys", f"{there:,} in the database")
    return Finding(
        Level.NOTE,
        "keys",
        f"{there:,} in the database, about {foreign:.0%} of them foreign to this registry",
        "each list and each sweep reads all of them: give the registry its own database",
    )


async def _scripts(servers: Servers, keys: Keys, node: Any) -> Finding:
    # Scripts the server has cached run by EVALSHA: without this check, a missing permission shows only after a restart.
    try:
        await servers.ask(node, "EVAL", "return 1", 0)
    except BackendRejectedError as error:
        if await _may_only_read(servers, keys, node):
            return Finding(Level.NOTE, "user", READS_ONLY, "enough for a viewer; agents and reapers need to write")
        return Finding(Level.BAD, "scripts", "EVAL is refused", str(error))
    return Finding(Level.OK, "scripts", "EVAL works")


async def _may_only_read(servers: Servers, keys: Keys, node: Any) -> bool:
    """Return whether even a write without effect is refused."""
    try:
        await servers.ask(node, "PERSIST", keys.probes()[0])
    except BackendRejectedError as error:
        return isinstance(error.__cause__, NoPermissionError)
    return False


def may_evict(info: dict[str, Any]) -> str | None:
    """Return the server's eviction policy if it may evict agents when memory is full, else None."""
    policy = str(info.get("maxmemory_policy", NO_EVICTION))
    return None if policy == NO_EVICTION or not int(info.get("maxmemory", 0)) else policy


def _for_node(finding: Finding, node: Any) -> Finding:
    host, port = node
    return Finding(finding.level, f"{finding.subject} of {host}:{port}", finding.found, finding.advice)


def _version(info: dict[str, Any]) -> Finding:
    valkey = info.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"
    numbers = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if numbers < MIN_VERSION:
        return Finding(Level.BAD, "server", name, "Redis 6.2 or later is needed")
    return Finding(Level.OK, "server", name)


def _eviction(info: dict[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if may_evict(info):
        return Finding(Level.BAD, "eviction", policy, "agents may be evicted: CONFIG SET maxmemory-policy noeviction")
    if policy != NO_EVICTION:
        return Finding(
            Level.NOTE, "eviction", f"{policy}, without maxmemory", "set noeviction before you set maxmemory"
        )
    return Finding(Level.OK, "eviction", policy)


def _memory(info: dict[str, Any]) -> Finding:
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if limit and used > 0.9 * limit:
        return Finding(
            Level.BAD,
            "memory",
            f"{used:,} of {limit:,} bytes",
            "writes fail when memory is full: raise maxmemory",
        )
    return Finding(Level.OK, "memory", f"{used:,} bytes of {f'{limit:,}' if limit else 'no limit'}")


def _persistence(info: dict[str, Any]) -> Finding:
    if str(info.get("rdb_last_bgsave_status")) == "err":
        return Finding(
            Level.BAD, "persistence", "the last save failed", "writes may be refused (MISCONF): see the server's log"
        )
    if int(info.get("aof_enabled", 0)):
        return Finding(Level.OK, "persistence", "append-only file")
    return Finding(
        Level.OK, "persistence", "no append-only file: after a restart, sessions register their agents again"
    )


def _role(info: dict[str, Any]) -> Finding:
    if info.get("role") != "master":
        in_sync = info.get("master_link_status") == "up"
        found = "replica in sync" if in_sync else "replica with its link to the primary down"
        refused = "writes are refused" if in_sync else "reads and writes are refused"
        return Finding(Level.BAD, "role", found, f"{refused}: name the primary, or use redis+sentinel://")
    return Finding(Level.OK, "role", f"primary with {info.get('connected_slaves', 0)} replicas")
