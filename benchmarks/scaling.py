"""`python -m benchmarks.scaling`: compare one Redis server with a cluster of three primaries on the same cores."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import redis
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from agentic import RedisRegistry
from agentic.backends.redis.scripts import SCRIPTS
from agentic.testing import RedisServer
from benchmarks.measure import calls, fill, fleet, walk
from benchmarks.report import about
from benchmarks.samples import Sample
from tests.support.redis_fleet import RedisCluster

AGENTS: Final = 20_000
CALLERS: Final = 1_000
CONNECTIONS: Final = (50, 500)
REPEATS: Final = 3

Rates = dict[str, list[float]]


def main(arguments: list[str]) -> None:
    """Measure, print a table, and write the figures to the file, if one is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with versions, to this file")
    options = parser.parse_args(arguments)
    rates = _measure()
    table = Table("a second", "median", "each", box=None, title_justify="left")
    for name, found in rates.items():
        table.add_row(name, f"{sorted(found)[len(found) // 2]:,.0f}", ", ".join(f"{rate:,.0f}" for rate in found))
    Console().print(table)
    if options.json is not None:
        document: dict[str, Any] = {"about": about(arguments, "benchmarks.scaling"), "rates": rates}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _measure() -> Rates:
    rates: Rates = {}
    with RedisServer() as server, RedisCluster() as cluster:
        for _ in range(REPEATS):
            for target, url in (("one server", server.url), ("three primaries", cluster.url)):
                heartbeats, listed = asyncio.run(_one_process(url))
                _add(rates, f"{target}: heartbeats of one process, {CALLERS:,} callers", heartbeats.rate)
                _add(rates, f"{target}: agents listed", listed.rate)
            for connections in CONNECTIONS:
                _add(rates, f"one server: heartbeats alone, {connections} connections", _unbatched(server, connections))
    return rates


async def _one_process(url: str) -> tuple[Sample, Sample]:
    # The ids that redis-benchmark generates for __rand_int__.
    agents = [replace(agent, id=f"agent-{number:012}") for number, agent in enumerate(fleet(AGENTS))]
    async with RedisRegistry(url, prefix="bench", ttl=100_000) as registry:
        await fill(registry, agents)
        heartbeats = await calls(registry.heartbeat, [agent.id for agent in agents], CALLERS, 1.0)
        return heartbeats, await walk(registry.list, AGENTS, AGENTS)


def _unbatched(server: RedisServer, connections: int) -> float:
    """Return the rate of unbatched heartbeats, as from processes with one agent each."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        raise SystemExit("redis-benchmark is not on PATH: it comes with the server's package")
    with redis.Redis(port=server.port) as client:
        sha = str(client.script_load(SCRIPTS["heartbeat"][1]))
    target = (program, "-p", str(server.port), "-c", str(connections), "-n", "200000", "-r", str(AGENTS), "--csv")
    command = ("EVALSHA", sha, "1", "bench:agent:agent-__rand_int__", "100000000")
    printed = subprocess.run([*target, *command], capture_output=True, text=True, check=True).stdout
    (rate,) = re.findall(r'^"EVALSHA.*?","([\d.]+)"', printed, re.MULTILINE)
    return float(rate)


def _add(rates: Rates, name: str, rate: float) -> None:
    print(f"{name}: {rate:,.0f}", file=sys.stderr, flush=True)
    rates.setdefault(name, []).append(round(rate))


if __name__ == "__main__":
    main(sys.argv[1:])
