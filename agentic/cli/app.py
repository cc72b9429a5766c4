"""The command line: inspect and change a registry by hand, and run a demo (extra `cli`)."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from getpass import getuser
from importlib.metadata import version
from shlex import quote
from shutil import get_terminal_size
from time import perf_counter
from typing import Annotated, Final, cast

import msgspec
import typer
from rich.text import Text

from agentic.agent import AgentChanges, AgentInfo, AgentStatus, Drain
from agentic.cli.chosen import Prefix, Url, chosen, existing, shared
from agentic.cli.commands import Command, Commands
from agentic.cli.completion import agent_ids
from agentic.cli.demo import Summary, check_rights, run_demo, scratch_registry
from agentic.cli.demo_screen import showing
from agentic.cli.tables import age, agent_json, finding_line, finding_row, fleet_lines
from agentic.cli.terminal import (
    cut_mark,
    ends_within,
    err,
    escaped,
    has_colours,
    is_terminal,
    out,
    print_json,
    print_json_array,
    print_lines,
    run_cancellable,
    without_log,
)
from agentic.clock import NEVER
from agentic.config import StoreChoice
from agentic.doctor import examine
from agentic.errors import AgentNotFoundError, BackendError, RegistryError
from agentic.findings import Finding, Level
from agentic.registry import AgentRegistry
from agentic.text import printable

PRINTED_AT_ONCE: Final = 500
"""Number of agents that a scan collects before it prints them."""

app = typer.Typer(
    cls=Commands,
    help="A registry of live agents.\n\nThe store is named by its URL, such as redis://localhost or sqlite:///fleet.db.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # Otherwise help is at least 50 characters wide.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": min(get_terminal_size().columns, 80) - 2,
    },
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(metavar="ID", hidden=True, autocompletion=agent_ids)]
Ids = Annotated[list[str], typer.Argument(metavar="ID", hidden=True, autocompletion=agent_ids)]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Its display name.", show_default=False)]
Capabilities = Annotated[
    list[str] | None, typer.Option("--capability", "-c", metavar="WORD", help="What it can do; repeat for several.")
]
Status = Annotated[AgentStatus | None, typer.Option(metavar="STATUS", help=f"Its status: {', '.join(AgentStatus)}.")]
Load = Annotated[int | None, typer.Option(metavar="N", help="Its current load.")]
MaxLoad = Annotated[int | None, typer.Option(metavar="N", help="Its maximum load; 0 is unlimited.")]
Meta = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata; repeat for several.")]
Unready = Annotated[
    str | None, typer.Option(metavar="REASON", help="Why it takes no work now; '' if it is ready.", show_default=False)
]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"agentic {version('agentic-registry')}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    url: Url = None,
    prefix: Prefix = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(2)


@app.command(cls=Command)
def ls(
    status: Annotated[
        AgentStatus | None, typer.Option(metavar="STATUS", help=f"Only these: {', '.join(AgentStatus)}.")
    ] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", metavar="WORD", help="Only agents with it; repeat for several."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Show at most N: the first by id; with --jsonl, the first read."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    as_lines: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON object per line, unordered, as they are read.")
    ] = False,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """List the agents."""
    if as_json and as_lines:
        raise typer.BadParameter("choose one of --json and --jsonl")
    wanted = set(capability or ())

    def matches(agent: AgentInfo) -> bool:
        return status in (None, agent.status) and wanted.issubset(agent.capabilities)

    async def run(registry: AgentRegistry) -> None:
        if as_lines:
            await _stream(registry, matches, sys.maxsize if limit is None else limit)
            return
        everyone = await registry.list()
        agents = sorted(filter(matches, everyone), key=lambda agent: agent.id)[:limit]
        if as_json:
            print_json_array(map(agent_json, agents))
            return
        width = out.width if is_terminal() else None
        print_lines(fleet_lines(agents, await registry.store_time(), width, colours=has_colours(), cut=cut_mark()))
        if is_terminal():
            found = f"{len(agents)} of " if len(agents) < len(everyone) else ""
            noun = "agent" if len(everyone) == 1 else "agents"
            err.note(f"{found}{len(everyone)} {noun} in {registry.store}")

    _on_registry(url, prefix, run, names_store=True)


async def _stream(registry: AgentRegistry, matches: Callable[[AgentInfo], bool], limit: int) -> None:
    """Print agents as lines of JSON while scanning the fleet."""
    batch: list[AgentInfo] = []
    async with aclosing(registry.scan()) as agents:
        async for agent in agents:
            if matches(agent):
                batch.append(agent)
            if len(batch) == min(limit, PRINTED_AT_ONCE):
                print_json(map(agent_json, batch))
                limit -= len(batch)
                batch.clear()
            if limit == 0:
                return
    print_json(map(agent_json, batch))


@app.command(cls=Command)
def get(agent_id: Id, as_json: AsJson = False, url: Url = None, prefix: Prefix = None) -> None:
    """Show one agent."""

    async def run(registry: AgentRegistry) -> None:
        agent = await registry.get(agent_id)
        if as_json:
            print_json([agent_json(agent)])
            return
        fields = {name: _readable(getattr(agent, name)) for name in agent.__struct_fields__}
        fields["last_heartbeat"] += f" ({age(agent.last_heartbeat, await registry.store_time())})"
        for name, value in fields.items():
            out.print(Text(f"{name:15} ").append(escaped(value)))

    _on_registry(url, prefix, run)


@app.command(cls=Command)
def register(
    agent_id: Id,
    name: Name = None,
    capability: Capabilities = None,
    status: Status = AgentStatus.AVAILABLE,
    load: Load = 0,
    max_load: MaxLoad = 0,
    meta: Meta = None,
    unready: Unready = None,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Add an agent, or replace the one with its id."""
    agent = AgentInfo(agent_id, **_fields(name, capability, status, load, max_load, meta, unready))

    async def run(registry: AgentRegistry) -> None:
        await registry.register(agent)

    _on_registry(url, prefix, run, create=True)


@app.command(cls=Command)
def update(
    agent_id: Id,
    name: Name = None,
    capability: Capabilities = None,
    status: Status = None,
    load: Load = None,
    max_load: MaxLoad = None,
    meta: Meta = None,
    unready: Unready = None,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Change the named fields of an agent.

    Other fields stay unchanged. Given capabilities and metadata replace the old ones. An update counts neither as a
    heartbeat nor as a registration.
    """
    changes = _fields(name, capability, status, load, max_load, meta, unready)
    if not changes:
        raise typer.BadParameter("name a field to change, such as --status or --load")

    async def run(registry: AgentRegistry) -> None:
        await registry.update(agent_id, **changes)

    _on_registry(url, prefix, run)


@app.command(cls=Command)
def heartbeat(agent_ids: Ids, url: Url = None, prefix: Prefix = None) -> None:
    """Send heartbeats for agents."""

    async def run(registry: AgentRegistry) -> None:
        await _for_each(agent_ids, registry.heartbeat)

    _on_registry(url, prefix, run)


@app.command(cls=Command)
def deregister(agent_ids: Ids, url: Url = None, prefix: Prefix = None) -> None:
    """Remove agents."""

    async def run(registry: AgentRegistry) -> None:
        await _for_each(agent_ids, registry.deregister)

    _on_registry(url, prefix, run)


@app.command(cls=Command)
def drain(
    agent_id: Id,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; shown to everybody.")],
    by: Annotated[str, typer.Option(metavar="TEXT", help="Who orders it; by default the user name.")] = "",
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="When it ends by itself: 90s, 30m, 12h or 2d; by default never."),
    ] = None,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Give an agent no new work, until resume.

    The order survives heartbeats and restarts of the agent, which may also not exist yet.
    """
    seconds = None if duration is None else _seconds(duration)

    async def run(registry: AgentRegistry) -> None:
        ordered = await registry.drain(agent_id, reason=reason, by=by or _user(), duration=seconds)
        until = "" if ordered.ends_at is None else f" until {ordered.ends_at:%Y-%m-%d %H:%M:%S} UTC"
        out.print(Text("draining ").append(escaped(agent_id)).append(until))

    _on_registry(url, prefix, run)


@app.command(cls=Command)
def resume(agent_ids: Ids, url: Url = None, prefix: Prefix = None) -> None:
    """Give agents work again after drain."""

    async def run(registry: AgentRegistry) -> None:
        async def end(agent_id: str) -> None:
            if not await registry.resume(agent_id):
                raise RegistryError(404, f"agent {printable(agent_id)!r} is not being drained")

        await _for_each(agent_ids, end)

    _on_registry(url, prefix, run)


def _seconds(text: str) -> float:
    """Convert a duration such as 30m to seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise typer.BadParameter("expected a number and s, m, h or d, such as 30m", param_hint="--for")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        return ""


@app.command(cls=Command)
def reap(
    ttl: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Silence after which an agent is stale; by default the store's stale_after, which is 30.",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Mark silent agents offline, and print their ids."""

    async def run(registry: AgentRegistry) -> None:
        def show(marked: list[str]) -> None:
            for agent_id in sorted(marked):
                out.print(escaped(agent_id))

        await registry.reap(ttl, on_marked=show)

    _on_registry(url, prefix, run)


@app.command(cls=Command)
def health(
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How long to wait for the store.")] = 5.0,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Check that the store answers, for probes.

    Exits with 0 or 1 and prints one line. Creates nothing.
    """
    # Time out in the store first: its own error says more.
    registry = existing(url, prefix).with_options(timeout=0.9 * timeout).registry()
    place = registry.store

    async def answer() -> None:
        async with registry:
            pass

    with ends_within(timeout, f"{place} did not answer within {timeout:g} s"), without_log():
        began = perf_counter()
        run_cancellable(answer())
        out.print(f"ok: {place} answered in {(perf_counter() - began) * 1000:.0f} ms")


@app.command(cls=Command)
def check(
    agent_id: Id,
    max_age: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How old the last heartbeat may be, by the store's clock.")
    ] = 30.0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How long to wait for the store.")] = 5.0,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Check that an agent is alive and ready, for probes.

    Exits with 0 or 1 and prints one line. Creates and changes nothing.
    """
    registry = existing(url, prefix).with_options(timeout=0.9 * timeout).registry()

    async def run() -> None:
        async with registry:
            agent, now = await registry.get(agent_id), await registry.store_time()
        shown = f"agent {printable(agent.id)!r}"
        if agent.status is AgentStatus.OFFLINE:
            raise RegistryError(503, f"{shown} is offline; its last heartbeat was {age(agent.last_heartbeat, now)}")
        if (now - (agent.last_heartbeat or NEVER)).total_seconds() > max_age:
            raise RegistryError(503, f"{shown} is silent: its last heartbeat was {age(agent.last_heartbeat, now)}")
        if agent.draining is not None:
            raise RegistryError(503, f"{shown} is being drained: {printable(agent.draining.reason)}")
        if not agent.ready:
            raise RegistryError(503, f"{shown} is not ready: {printable(agent.unready)}")
        out.print(f"ok: {shown} is ready; its last heartbeat was {age(agent.last_heartbeat, now)}")

    with ends_within(timeout, f"{registry.store} did not answer within {timeout:g} s"), without_log():
        run_cancellable(run())


@app.command(cls=Command)
def doctor(as_json: AsJson = False, url: Url = None, prefix: Prefix = None) -> None:
    """Examine the store and give advice.

    Checks its version, latency, clock, permissions and records. Exits with 1 if something is bad.
    """
    findings: list[Finding] = []

    async def run(registry: AgentRegistry) -> None:
        async with aclosing(examine(registry)) as found:
            async for finding in found:
                findings.append(finding)
                if as_json:
                    continue
                out.print(finding_row(finding, out.width) if is_terminal() else finding_line(finding))

    failed: RegistryError | None = None
    try:
        _on_registry(url, prefix, run, names_store=True)
    except BackendError as error:
        failed = RegistryError(500, re.sub(" `agentic doctor.*` examines it", "", str(error)))
        found, _, advice = str(failed).partition("; ")
        findings.append(Finding(Level.BAD, "store", found, advice))
    if as_json:
        print_json_array(map(msgspec.json.encode, findings))
    if failed is not None:
        raise failed
    if any(finding.level is Level.BAD for finding in findings):
        raise typer.Exit(1)


@app.command(cls=Command)
def demo(
    agents: Annotated[int, typer.Option(metavar="N", min=3, max=500, help="How many agents.")] = 12,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live table.")] = False,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Show a simulated fleet for about five seconds.

    Agents register, some fall silent and are taken offline, and one comes back. Existing agents are not touched.
    """
    live = not plain and is_terminal() and out.is_terminal and not out.is_dumb_terminal

    async def play(registry: AgentRegistry) -> Summary:
        async with registry:
            await check_rights(registry)
            async with showing(registry, live=live) as report:
                return await run_demo(registry, agents, report)

    store = chosen(url, prefix)
    # An outage ends the demo with one error line; without this, each session would also log it.
    with scratch_registry(store) as registry, without_log():
        out.print(f"store: {registry.store}; existing agents are not touched")
        summary = run_cancellable(play(registry))
    out.print(
        f"{summary.registered} agents registered, {len(summary.silent)} fell silent, "
        f"{len(summary.taken_offline)} were taken offline, {len(summary.came_back)} came back."
    )
    problem = summary.problem()
    if problem:
        raise RegistryError(500, f"the demo failed: {problem}")
    option = _store_option(url, prefix, store)
    for label, command in ("next:", "register my-agent"), ("", "ls"):
        out.print(f"{label:5} agentic {command}{option}", soft_wrap=True)  # Each on one line, to copy and paste.


def _store_option(url: str | None, prefix: str | None, store: StoreChoice) -> str:
    """Return the option that selects the demo's store, or a persistent one if the demo ran in memory."""
    if not store.kind.is_shared:
        return " --url sqlite:///fleet.db"
    if url is None and prefix is None:
        return ""
    return f" --url {quote(store.registry().store)}"


def _fields(
    name: str | None,
    capability: Sequence[str] | None,
    status: AgentStatus | None,
    load: int | None,
    max_load: int | None,
    meta: Sequence[str] | None,
    unready: str | None,
) -> AgentChanges:
    """Return the agent fields that were given as options."""
    pairs = [each.partition("=") for each in meta or ()]
    if not all(separator for _, separator, _ in pairs):
        raise typer.BadParameter("expected KEY=VALUE", param_hint="--meta")
    fields = {
        "name": name,
        "capabilities": tuple(capability) if capability else None,
        "status": status,
        "current_load": load,
        "max_load": max_load,
        "metadata": {key: value for key, _, value in pairs} if pairs else None,
        "unready": unready,
    }
    return cast(AgentChanges, {field: value for field, value in fields.items() if value is not None})


def _on_registry(
    url: str | None,
    prefix: str | None,
    run: Callable[[AgentRegistry], Awaitable[None]],
    *,
    create: bool = False,
    names_store: bool = False,
) -> None:
    """Run a coroutine function on the open registry.

    Args:
        url: The command's option.
        prefix: The command's option.
        run: Called with the open registry.
        create: Create what is missing, such as a SQLite file.
        names_store: The command itself prints the name of the store.
    """
    registry = (shared if create else existing)(url, prefix).registry()
    if url is None and not names_store and sys.stderr.isatty():
        err.note(f"store: {registry.store}")

    async def opened() -> None:
        async with registry:
            await run(registry)

    run_cancellable(opened())


async def _for_each(agent_ids: Sequence[str], call: Callable[[str], Awaitable[object]]) -> None:
    """Make a call for each agent; one failure does not stop the others.

    Raises:
        ExceptionGroup: One error for each kind of failure; it names its agents if several ids were given.
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
    messages = []
    for why, ids in failed.items():
        unnamed = [each for each in ids if f"'{each}'" not in why and len(unique) > 1]
        messages.append(f"{why} ({', '.join(unnamed)})" if unnamed else why)
    if absent:
        messages.insert(0, f"agent{'s' * (len(absent) > 1)} not found: {', '.join(absent)}")
    if messages:
        raise ExceptionGroup("failed for some agents", [RegistryError(500, message) for message in messages])


def _readable(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, Drain):
        ends = "" if value.ends_at is None else f", until {value.ends_at}"
        return f"{value.reason} (by {value.by or 'somebody'}, since {value.drained_at}{ends})"
    return str(value)
