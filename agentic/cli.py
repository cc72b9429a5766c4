"""The command line: a registry looked at and changed by hand, and a demo (extra `cli`)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any, Final

import anyio
import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from agentic.agent import AgentInfo, AgentStatus, encode_agent
from agentic.clock import system_clock
from agentic.config import RegistryConfig, open_registry
from agentic.demo import Summary, Tell, run_demo, scratch_registry
from agentic.doctor import examine
from agentic.errors import RegistryError
from agentic.findings import Level
from agentic.registry import AgentRegistry
from agentic.tables import finding_line, fleet_table, printable

app = typer.Typer(
    help="A registry of live agents, in memory, SQLite or Redis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

Url = Annotated[
    str | None,
    typer.Option("--url", help="The store, such as redis://localhost:6379/0; or AGENTIC_URL; else the SQLite file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(metavar="ID")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...")]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"agentic {version('agentic-registry')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List the agents."""

    async def run(registry: AgentRegistry) -> None:
        agents = await registry.list()
        if as_json:
            _print_json(sorted(agents, key=lambda agent: agent.id))
        else:
            out.print(fleet_table(agents, system_clock()), soft_wrap=False)
            err.print(f"{len(agents)} agents", style="dim")

    _on_registry(url, run)


@app.command()
def get(agent_id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Show one agent."""

    async def run(registry: AgentRegistry) -> None:
        agent = await registry.get(agent_id)
        if as_json:
            out.print(encode_agent(agent).decode(), markup=False)
            return
        for name in agent.__struct_fields__:
            out.print(Text(f"{name:15} "), printable(_readable(getattr(agent, name))), sep="")

    _on_registry(url, run)


@app.command()
def register(
    agent_id: Id,
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    capability: Annotated[list[str] | None, typer.Option("--capability", "-c", help="What it can do; repeat.")] = None,
    status: Annotated[AgentStatus, typer.Option(help="Its status.")] = AgentStatus.AVAILABLE,
    load: Annotated[int, typer.Option(help="The work it has.")] = 0,
    max_load: Annotated[int, typer.Option(help="The work it can take; 0 is unlimited.")] = 0,
    meta: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Anything else; repeat.")] = None,
    url: Url = None,
) -> None:
    """Add an agent, or replace the one with its id."""
    pairs = [each.partition("=") for each in meta or ()]
    if not all(separator for _, separator, _ in pairs):
        raise typer.BadParameter("expected KEY=VALUE", param_hint="--meta")
    metadata = {key: value for key, _, value in pairs}
    agent = AgentInfo(agent_id, name, tuple(capability or ()), status, None, load, max_load, metadata)

    async def run(registry: AgentRegistry) -> None:
        await registry.register(agent)

    _on_registry(url, run)


@app.command()
def heartbeat(agent_ids: Ids, url: Url = None) -> None:
    """Send the heartbeat of agents."""

    async def run(registry: AgentRegistry) -> None:
        absent = await registry.heartbeat_many(agent_ids)
        if absent:
            raise RegistryError(404, f"agents not found: {', '.join(sorted(absent))}")

    _on_registry(url, run)


@app.command()
def deregister(agent_ids: Ids, url: Url = None) -> None:
    """Remove agents."""

    async def run(registry: AgentRegistry) -> None:
        for agent_id in agent_ids:
            await registry.deregister(agent_id)

    _on_registry(url, run)


@app.command()
def reap(
    ttl: Annotated[float, typer.Option(help="Seconds of silence that make an agent stale.")] = 30.0, url: Url = None
) -> None:
    """Mark silent agents offline, and print their ids."""

    async def run(registry: AgentRegistry) -> None:
        for agent_id in sorted(await registry.reap(ttl)):
            out.print(printable(agent_id))

    _on_registry(url, run)


@app.command()
def doctor(url: Url = None, as_json: AsJson = False) -> None:
    """Examine the store: version, latency, clock, rights, records, and what to do; exits with 1 if something is bad."""

    async def run(registry: AgentRegistry) -> None:
        findings = []
        async for finding in examine(registry):
            findings.append(finding)
            if not as_json:
                out.print(finding_line(finding))
        if as_json:
            out.print(msgspec.json.format(msgspec.json.encode(findings)).decode(), markup=False)
        if any(finding.level is Level.BAD for finding in findings):
            raise typer.Exit(1)

    _on_registry(url, run)


@app.command()
def demo(
    agents: Annotated[int, typer.Option(min=3, max=500, help="How many agents.")] = 12,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live table.")] = False,
    url: Url = None,
) -> None:
    """Watch a simulated fleet live, fall silent and come back, for some five seconds."""
    with _told_errors():
        config = _config(url)
        with scratch_registry(config) as (registry, place):
            out.print(f"store: {place}; the registry's own agents are not touched", markup=False)
            summary = asyncio.run(_play(registry, agents, plain=plain or not out.is_terminal))
        problem = summary.problem()
        out.print(
            f"{summary.registered} agents registered, {len(summary.silent)} fell silent, "
            f"{len(summary.taken_offline)} were taken offline, {len(summary.came_back)} came back."
        )
        if problem:
            raise RegistryError(500, f"the demo did not go as it should: {problem}")


async def _play(registry: AgentRegistry, size: int, *, plain: bool) -> Summary:
    async with registry:
        if plain:
            return await run_demo(registry, size, _tell_in_lines())
        async with _live_table(registry) as tell:
            return await run_demo(registry, size, tell)


def _tell_in_lines() -> Tell:
    started_at = system_clock()

    def tell(who: str, what: str) -> None:
        out.print(f"{(system_clock() - started_at).total_seconds():6.2f} s  {who:10}  {what}", markup=False)

    return tell


@asynccontextmanager
async def _live_table(registry: AgentRegistry) -> AsyncGenerator[Tell, None]:
    """Show the fleet, renewed several times a second, above the latest events."""
    events: deque[str] = deque(maxlen=6)

    async def renew(live: Live) -> None:
        while True:
            table = fleet_table(await registry.list(), system_clock())
            live.update(Group(table, Rule(style="dim"), *(Text(event, style="dim") for event in events)), refresh=True)
            await anyio.sleep(0.1)

    with Live(console=out, auto_refresh=False, transient=True) as live:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(renew, live)
            yield lambda who, what: events.append(f"{who}: {what}")
            tasks.cancel_scope.cancel()


def _on_registry(url: str | None, run: Any) -> None:
    """Run a coroutine function on the open registry."""

    async def opened() -> None:
        async with open_registry(_config(url)) as registry:
            await run(registry)

    with _told_errors():
        asyncio.run(opened())


def _config(url: str | None) -> RegistryConfig:
    """Return the store to use: the URL given, else the environment's, else the default SQLite file."""
    if url is not None:
        return RegistryConfig(url=url or "none")
    config = RegistryConfig.from_env()
    return config if config.url or os.environ.get("AGENTIC_BACKEND") else replace(config, backend="sqlite")


@contextmanager
def _told_errors() -> Iterator[None]:
    """Tell what went wrong in one line on stderr, and exit with 1; with 130 when interrupted."""
    try:
        yield
        out.file.flush()
    except RegistryError as error:
        err.print(Text.assemble(("error: ", "bold red"), printable(str(error))))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader left; nothing more can be written, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        err.print(Text.assemble(("error: ", "bold red"), f"the output could not be written: {error}"))
        raise typer.Exit(1) from None


def _print_json(agents: list[AgentInfo]) -> None:
    records = b",".join(map(encode_agent, agents))
    out.print(msgspec.json.format(b"[" + records + b"]").decode(), markup=False)


def _readable(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return str(value)
