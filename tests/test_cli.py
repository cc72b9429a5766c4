"""The command line, on real stores."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agentic import AgentInfo, open_registry
from agentic.cli import app
from agentic.tables import age
from agentic.terminal import escaped
from agentic.wire import decode_agent
from tests.redis_server import RedisServer
from tests.stores import LONG_AGO

Command = Callable[..., Result]


@pytest.fixture(params=["backend", "sqlite", "redis"])
def agentic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command with its store named in each way: by its backend alone, by option, by URL in the environment."""
    options: tuple[str, ...] = ()
    if request.param == "backend":
        monkeypatch.setenv("AGENTIC_BACKEND", "sqlite")
    elif request.param == "sqlite":
        options = ("--url", f"sqlite:///{tmp_path}/cli.db")
    elif request.param == "redis":
        url = f"{request.getfixturevalue('redis_url')}?prefix=test-cli-{tmp_path.name}"
        monkeypatch.setenv("AGENTIC_URL", url)
        request.addfinalizer(lambda: asyncio.run(flush(url)))
    return lambda *arguments: CliRunner().invoke(app, [*arguments, *options])


async def flush(url: str) -> None:
    async with open_registry(url) as registry:
        await registry.flush()


def test_an_agent_is_registered_seen_and_removed(agentic: Command) -> None:
    done = agentic(
        "register", "a", "--name", "[red]n", "-c", "go", "-c", "x", "--max-load", "5", "--meta", "k=v=w", "--load", "2"
    )
    assert (done.exit_code, done.output) == (0, "")
    agent = decode_agent(agentic("get", "a", "--json").stdout)
    assert (agent.name, agent.capabilities, agent.max_load, agent.current_load) == ("[red]n", ("go", "x"), 5, 2)
    assert agent.metadata == {"k": "v=w"}
    (listed,) = json.loads(agentic("ls", "--json").stdout)
    assert listed["id"] == "a"
    for shown in (agentic("ls").stdout, agentic("get", "a").stdout):
        assert "[red]n" in shown
        assert "go, x" in shown
        assert "available" in shown
    assert agentic("heartbeat", "a").exit_code == 0
    assert agentic("deregister", "a").exit_code == 0
    assert json.loads(agentic("ls", "--json").stdout) == []


def test_a_silent_agent_is_reaped(agentic: Command) -> None:
    agentic("register", "a")
    assert agentic("reap").stdout == ""
    assert agentic("reap", "--ttl", "0").stdout == "a\n"
    assert "offline" in agentic("get", "a").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["get", "ghost"], "error: agent not found: ghost"),
        (["deregister", "ghost"], "error: agent not found: ghost"),
        (["heartbeat", "ghost", "gone"], "error: agents not found: ghost, gone"),
        (["register", ""], "error: agent ID is required"),
        (["register", "a", "--load", "-1"], "error: current_load: must not be negative"),
        (["reap", "--ttl", "-1"], "error: ttl must not be negative, got -1.0"),
    ],
)
def test_what_went_wrong_is_told_in_one_line(agentic: Command, arguments: list[str], told: str) -> None:
    done = agentic(*arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", told + "\n")


@pytest.mark.parametrize(
    "url",
    ["", "bogus", "ftp://x", "redis://u:s3cr3t@[", "sqlite:////no/such/folder/x.db", "redis://:s3cr3t@127.0.0.1:1"],
)
@pytest.mark.parametrize("command", [["ls"], ["demo", "--plain"]])
def test_a_wrong_url_is_told_in_one_line_without_its_password(url: str, command: list[str]) -> None:
    if command[0] == "demo" and url.startswith("sqlite"):
        return  # the demo uses a scratch file
    done = CliRunner().invoke(app, [*command, "--url", url])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "s3cr3t" not in done.output


def test_a_wrong_pair_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["register", "a", "--meta", "novalue"]).exit_code == 2


def test_the_version_and_the_help_are_shown() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("agentic 0.")
    assert "demo" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_hostile_id_does_not_reach_the_terminal_raw() -> None:
    assert escaped("\x1b[31mred\n[bold]").plain == r"\x1b[31mred\n[bold]"


def test_ages_are_told_in_the_unit_that_suits_them() -> None:
    at = LONG_AGO
    told = [
        age(at, at.fromtimestamp(at.timestamp() + seconds, at.tzinfo)) for seconds in (0, 1.24, 119, 120, 7200, 3e6)
    ]
    assert told == ["0.0 s ago", "1.2 s ago", "119.0 s ago", "2 min ago", "2 h ago", "35 d ago"]
    assert age(None, at) == age(at.replace(year=1), at) == "never"


# --- the demo ---


def assert_demo_went_well(done: Result) -> None:
    assert done.exit_code == 0, done.output
    assert "6 agents registered, 2 fell silent, 2 were taken offline, 1 came back." in done.stdout


@pytest.mark.parametrize("store", ["sqlite", "memory", "redis"])
def test_the_demo_shows_a_fleet_and_leaves_real_agents_alone(
    store: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    prefix = f"test-demo-{tmp_path.name}"
    url = {
        "sqlite": f"sqlite:///{tmp_path}/x.db",
        "memory": "memory://",
        "redis": f"{redis_server.url}?prefix={prefix}",
    }[store]

    async def real_agents(*, register: bool) -> list[AgentInfo]:
        async with open_registry(url) as registry:
            if register:
                await registry.register(AgentInfo("real", last_heartbeat=LONG_AGO))
                return await registry.list()
            agents = await registry.list()
            await registry.flush()
            return agents

    before = asyncio.run(real_agents(register=True))
    done = CliRunner().invoke(app, ["demo", "--agents", "6", "--url", url])
    assert_demo_went_well(done)
    for event in (
        "registered by its session",
        "crashed",
        "taken offline by the reaper",
        "available again",
        "sessions ended",
    ):
        assert event in done.stdout
    if store != "memory":
        assert asyncio.run(real_agents(register=False)) == before


@pytest.mark.parametrize("url", [(), ("--url", "memory://")])
@pytest.mark.parametrize("command", ["ls", "doctor", "get a", "register a"])
def test_a_store_that_nobody_else_sees_is_refused(command: str, url: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command.split(), *url])
    assert done.exit_code == 1
    assert "name a store by its URL, as in AGENTIC_URL" in done.stderr
    assert list(Path.home().iterdir()) == []


def test_a_path_in_the_environment_is_the_store_of_program_and_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTIC_PATH", str(tmp_path / "fleet.db"))

    async def register() -> None:
        async with open_registry() as registry:
            await registry.register(AgentInfo("worker"))

    asyncio.run(register())
    assert "worker" in CliRunner().invoke(app, ["ls"]).stdout


def test_the_demo_shows_a_live_table_on_a_terminal() -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "agentic", "demo", "--agents", "6", "--url", "memory://"]
    with subprocess.Popen(command, stdout=end, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(end)
        shown = b"".join(iter(lambda: _read(terminal), b"")).decode()
        assert process.wait() == 0
    os.close(terminal)
    assert shown.count("last heartbeat") > 10
    assert "taken offline by the reaper" in shown
    assert "6 agents registered, 2 fell silent, 2 were taken offline, 1 came back." in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "agentic", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})


def test_the_module_runs_as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTIC_BACKEND", "sqlite")
    done = run("register", "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(run("ls", "--json").stdout)[0]["id"] == "a"


def test_a_dead_store_gives_one_line_and_no_traceback() -> None:
    done = run("ls", "--url", "redis://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: failed to connect to Redis: ")
    assert done.stderr.count("\n") == 1


def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['typer'] = None; from agentic.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        'error: the command line needs an extra: pip install "agentic-registry[cli]"\n',
    )
