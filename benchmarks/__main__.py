"""`python -m benchmarks`: measure the stores, print a table, write JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final

import redis.asyncio as aioredis
from rich.console import Console

from agentic import AgentRegistry, MemoryRegistry, RedisRegistry, SQLiteRegistry
from benchmarks import report
from benchmarks.measure import OURS, Fleet, Result, measure_store
from benchmarks.peers import Contender, PlainRedis, PlainSQLite
from benchmarks.servers import running_server

STORES: Final = ("memory", "sqlite", "redis")


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for."""
    options = _parser().parse_args(arguments)
    fleet = Fleet(options.agents, options.seconds)
    results: list[Result] = []
    server: str | None = None
    for store in options.store:
        found, version = asyncio.run(_measure(store, fleet, options.repeats))
        results += found
        server = version or server
    about = report.about(arguments, server)
    console = Console()
    for table in report.tables(results):
        console.print(table, "", sep="\n")
    console.print("\n".join(f"{name}: {value}" for name, value in about.items()), style="dim", highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(report.document(about, results), indent=2) + "\n", encoding="utf-8")


async def _measure(store: str, fleet: Fleet, repeats: int) -> tuple[list[Result], str | None]:
    with ExitStack() as outer:
        async with AsyncExitStack() as stack:
            contenders: dict[str, Contender] = {}
            registry: AgentRegistry
            version: str | None = None
            if store == "memory":
                registry = MemoryRegistry()
            elif store == "sqlite":
                folder = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="agentic-bench-")))
                registry = SQLiteRegistry(folder / "registry.db")
                contenders["one commit a call"] = await stack.enter_async_context(
                    PlainSQLite.opened(folder / "plain.db")
                )
            else:
                url = outer.enter_context(running_server()).url
                version = await _server_version(url)
                registry = RedisRegistry(url, prefix="bench")
                contenders["GET and SET a call"] = await stack.enter_async_context(PlainRedis.opened(url))
            contenders[OURS] = await stack.enter_async_context(registry)
            return await measure_store(store, contenders, fleet, repeats, _tell), version


async def _server_version(url: str) -> str:
    async with aioredis.Redis.from_url(url) as client:
        info: dict[str, Any] = await client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def _tell(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the registry's calls on each store, beside plain programs that do the same work. "
        "Medians of interleaved repeats; progress goes to stderr. Compare ratios within a run, not rates of two hosts.",
    )
    parser.add_argument("--store", type=_stores, default=STORES, metavar="memory,sqlite,redis", help="which stores")
    parser.add_argument("--agents", type=_count, default=5000, metavar="N", help="the size of the fleet (5000)")
    parser.add_argument("--repeats", type=_count, default=5, metavar="N", help="how often each case is measured (5)")
    parser.add_argument("--seconds", type=float, default=0.3, metavar="S", help="how long a measurement takes (0.3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every rate, with versions, to this file")
    return parser


def _stores(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in STORES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown store {unknown[0]!r}: expected {', '.join(STORES)}")
    return names


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    main(sys.argv[1:])
