"""The command line: a registry looked at and changed by hand, and a demo (extra `cli`)."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.text import Text
from typer.core import TyperGroup

from agentic.agent import AgentInfo, AgentStatus, encode_agent
from agentic.config import as_config, open_registry, shared
from agentic.demo import Summary, check_rights, run_demo, scratch_registry
from agentic.demo_screen import shown
from agentic.doctor import examine
from agentic.errors import AgentNotFoundError, BackendError, RegistryError
from agentic.findings import Finding, Level
from agentic.registry import AgentRegistry
from agentic.tables import finding_line, fleet_lines
from agentic.terminal import (
    err,
    escaped,
    exit_in_one_line,
    is_terminal,
    out,
    print_json,
    print_json_array,
    run_cancellable,
    without_log,
)
from agentic.text import printable

# Typer exports no other of its usage errors.
UsageError: Final[Any] = typer.BadParameter.__base__


class _Commands(TyperGroup):
    """Commands that end with one line for what went wrong."""

    def main(self, *args: Any, **options: Any) -> Any:
        with exit_in_one_line():
            try:
                code = super().main(*args, **options | {"standalone_mode": False})
            except UsageError as error:
                arguments = args[0] if args else options.get("args")
                error.message = _without_values(error.message, sys.argv[1:] if arguments is None else arguments)
                error.show()
                code = error.exit_code
        sys.exit(code)


def _without_values(message: str, arguments: Sequence[str]) -> str:
    """Return a message without the values that it quotes: a URL in the wrong place may hold a password."""
    for argument in arguments:
        for value in filter(None, (argument, argument.partition("=")[2])):
            message = message.replace(repr(value), "'***'")
    message = re.sub(r"(unexpected extra argument).*", r"\1", message, flags=re.DOTALL)
    message = re.sub(r"\S*(://|@)\S*", "***", message)
    return "\n".join(escaped(line).plain for line in message.split("\n"))


app = typer.Typer(
    cls=_Commands,
    help="A registry of live agents, in memory, SQLite or Redis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Url = Annotated[
    str | None,
    typer.Option("--url", help="The store, such as redis://localhost:6379/0; else the AGENTIC_* variables."),
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
            print_json_array(encode_agent(agent) for agent in sorted(agents, key=lambda agent: agent.id))
            return
        lines = fleet_lines(agents, await registry.store_time(), out.width if is_terminal() else None)
        out.print(Text("\n").join(lines))
        err.print(f"{len(agents)} agent{'s' * (len(agents) != 1)} in {registry!r}", style="dim")

    _on_registry(url, run, names_store=not as_json)


@app.command()
def get(agent_id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Show one agent."""

    async def run(registry: AgentRegistry) -> None:
        agent = await registry.get(agent_id)
        if as_json:
            print_json(encode_agent(agent))
            return
        for name in agent.__struct_fields__:
            out.print(Text(f"{name:15} ").append(escaped(_readable(getattr(agent, name)))))

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

    _on_registry(url, run, create=True)


@app.command()
def heartbeat(agent_ids: Ids, url: Url = None) -> None:
    """Send the heartbeat of agents."""

    async def run(registry: AgentRegistry) -> None:
        await _for_each(agent_ids, registry.heartbeat)

    _on_registry(url, run)


@app.command()
def deregister(agent_ids: Ids, url: Url = None) -> None:
    """Remove agents."""

    async def run(registry: AgentRegistry) -> None:
        await _for_each(agent_ids, registry.deregister)

    _on_registry(url, run)


@app.command()
def reap(
    ttl: Annotated[
        float | None,
        typer.Option(help="Seconds of silence; by default the store's stale_after, which is 30.", show_default=False),
    ] = None,
    url: Url = None,
) -> None:
    """Mark silent agents offline, and print their ids."""

    async def run(registry: AgentRegistry) -> None:
        def show(marked: list[str]) -> None:
            for agent_id in sorted(marked):
                out.print(escaped(agent_id))

        await registry.reap(registry.stale_after if ttl is None else ttl, on_marked=show)

    _on_registry(url, run)


@app.command()
def doctor(url: Url = None, as_json: AsJson = False) -> None:
    """Examine the store: version, latency, clock, rights, records, and what to do; exits with 1 if something is bad."""
    findings: list[Finding] = []

    async def run(registry: AgentRegistry) -> None:
        async with aclosing(examine(registry)) as found:
            async for finding in found:
                findings.append(finding)
                if not as_json:
                    out.print(finding_line(finding))

    failed: BackendError | None = None
    try:
        _on_registry(url, run, names_store=True)
    except BackendError as error:
        failed = error
        findings.append(Finding(Level.BAD, "store", str(error)))
    if as_json:
        print_json_array(map(msgspec.json.encode, findings))
    if failed is not None:
        raise failed
    if any(finding.level is Level.BAD for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    agents: Annotated[int, typer.Option(min=3, max=500, help="How many agents.")] = 12,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live table.")] = False,
    url: Url = None,
) -> None:
    """Watch a simulated fleet live, fall silent and come back, for some five seconds."""
    live = not plain and is_terminal() and out.is_terminal and not out.is_dumb_terminal

    async def play(registry: AgentRegistry, place: str) -> Summary:
        async with registry:
            await check_rights(registry, place)
            async with shown(registry, live=live) as tell:
                return await run_demo(registry, agents, tell)

    # An outage ends the demo with one line; each of its sessions would log it as well.
    with scratch_registry(as_config(url)) as (registry, place), without_log():
        out.print(f"store: {place}; the registry's own agents are not touched")
        summary = run_cancellable(play(registry, place))
    out.print(
        f"{summary.registered} agents registered, {len(summary.silent)} fell silent, "
        f"{len(summary.taken_offline)} were taken offline, {len(summary.came_back)} came back."
    )
    problem = summary.problem()
    if problem:
        raise RegistryError(500, f"the demo did not go as it should: {problem}")


def _on_registry(
    url: str | None,
    run: Callable[[AgentRegistry], Awaitable[None]],
    *,
    create: bool = False,
    names_store: bool = False,
) -> None:
    """Run a coroutine function on the open registry.

    Args:
        url: As given to the command.
        run: Given the registry.
        create: Make a SQLite file that is not there.
        names_store: The command itself prints which store it is.
    """
    config = shared(as_config(url))
    if config.backend == "sqlite" and not create:
        config = replace(config, create=False)
    registry = open_registry(config)
    if url is None and not names_store and sys.stderr.isatty():
        err.print(f"store: {registry!r}", style="dim")

    async def opened() -> None:
        async with registry:
            await run(registry)

    run_cancellable(opened())


async def _for_each(agent_ids: Sequence[str], call: Callable[[str], Awaitable[object]]) -> None:
    """Make a call for each agent, for all of them whatever happens to one.

    Raises:
        ExceptionGroup: One error for each kind of failure, which names the agents where there are several.
    """
    unique = list(dict.fromkeys(agent_ids))
    outcomes = await asyncio.gather(*map(call, unique), return_exceptions=True)
    absent: list[str] = []
    failed: dict[str, list[str]] = {}
    for agent_id, outcome in zip(unique, outcomes, strict=True):
        if isinstance(outcome, AgentNotFoundError):
            absent.append(printable(agent_id))
        elif isinstance(outcome, RegistryError):
            failed.setdefault(str(outcome), []).append(printable(agent_id))
        elif isinstance(outcome, BaseException):
            raise outcome
    messages = [f"{why} ({', '.join(ids)})" if len(unique) > 1 else why for why, ids in failed.items()]
    if absent:
        messages.insert(0, f"agent{'s' * (len(absent) > 1)} not found: {', '.join(absent)}")
    if messages:
        raise ExceptionGroup("not done for all agents", [RegistryError(500, message) for message in messages])


def _readable(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return str(value)
