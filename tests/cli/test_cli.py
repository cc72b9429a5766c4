"""The command line, on real stores."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.text import Text
from typer.testing import CliRunner, Result

from agentic import AgentInfo, AgentStatus, open_registry
from agentic.cli.app import app
from agentic.cli.tables import age, fleet_lines
from agentic.cli.terminal import escaped
from agentic.testing.servers import RedisServer, free_port
from agentic.wire import decode_agent
from tests.support.documents import documented_acl
from tests.support.stores import LONG_AGO

Command = Callable[..., Result]


@pytest.fixture(params=["backend", "sqlite", "redis"])
def agentic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command, with its store named in each way: by backend, by option, by URL in the environment."""
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


def test_an_update_changes_only_the_named_fields(agentic: Command) -> None:
    agentic("register", "a", "--name", "n", "-c", "x", "-c", "y", "--max-load", "5", "--meta", "k=v", "--meta", "l=w")

    def fields() -> dict[str, object]:
        return dict(json.loads(agentic("get", "a", "--json").stdout))

    expected = fields()
    for arguments, changed in (
        (["--status", "busy", "--load", "2"], {"status": "busy", "current_load": 2}),
        (["--name", ""], {"name": ""}),
        (["-c", "z"], {"capabilities": ["z"]}),
        (["--meta", "m=1"], {"metadata": {"m": "1"}}),
        (["--max-load", "0"], {"max_load": 0}),
        (["--unready", "loading"], {"unready": "loading"}),
    ):
        done = agentic("update", "a", *arguments)
        assert (done.exit_code, done.output) == (0, "")
        expected |= changed
        assert fields() == expected
    done = agentic("update", "a")
    assert done.exit_code == 2
    assert "name a field to change" in done.stderr


def test_an_agent_that_takes_no_work_is_shown_so(agentic: Command) -> None:
    agentic("register", "a", "--status", "busy", "--unready", "loading\nthe model")
    assert "busy, unready" in agentic("ls").stdout
    assert "loading\\nthe model" in agentic("get", "a").stdout
    assert agentic("update", "a", "--unready", "").exit_code == 0
    assert "unready" not in agentic("ls").stdout


def test_an_agent_is_drained_until_it_resumes(agentic: Command) -> None:
    agentic("register", "a")
    done = agentic("drain", "a", "--reason", "new\ndisk", "--by", "ops", "--for", "30m")
    assert done.exit_code == 0
    assert re.fullmatch(r"draining a until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", done.stdout)
    assert "available, draining" in agentic("ls").stdout
    assert "new\\ndisk (by ops, since" in agentic("get", "a").stdout
    shown = json.loads(agentic("get", "a", "--json").stdout)["draining"]
    assert (shown["reason"], shown["by"]) == ("new\ndisk", "ops")
    assert agentic("check", "a").stderr == "error: agent 'a' is being drained: new\\ndisk\n"
    assert agentic("resume", "a").exit_code == 0
    assert "draining" not in agentic("ls").stdout
    assert "draining" not in agentic("get", "a", "--json").stdout
    assert agentic("check", "a").exit_code == 0
    done = agentic("resume", "a")
    assert (done.exit_code, done.stderr) == (1, "error: agent 'a' is not being drained\n")
    assert agentic("drain", "not-there", "--reason", "r").stdout == "draining not-there\n"
    for wrong in ("30", "m", "-1m", "1y"):
        assert agentic("drain", "a", "--reason", "r", "--for", wrong).exit_code == 2
    assert agentic("drain", "a").exit_code == 2


def test_check_is_one_line_and_an_exit_code(agentic: Command) -> None:
    agentic("register", "a")
    done = agentic("check", "a")
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.fullmatch(r"ok: agent 'a' is ready; its last heartbeat was [0-9.]+ s ago\n", done.stdout)
    agentic("update", "a", "--unready", "loading")
    assert agentic("check", "a").stderr == "error: agent 'a' is not ready: loading\n"
    time.sleep(0.2)
    assert "error: agent 'a' is silent: its last heartbeat was" in agentic("check", "a", "--max-age", "0.1").stderr
    agentic("reap", "--ttl", "0")
    assert "error: agent 'a' is offline; its last heartbeat was" in agentic("check", "a").stderr
    agentic("heartbeat", "a")
    agentic("update", "a", "--unready", "")
    assert agentic("check", "a").exit_code == 0
    done = agentic("check", "ghost")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "error: agent not found: ghost\n")


def test_a_listing_shows_only_matching_agents(agentic: Command) -> None:
    agentic("register", "d", "-c", "x", "-c", "y")
    agentic("register", "b", "-c", "x")
    agentic("register", "c", "--status", "busy", "-c", "x", "-c", "y")
    agentic("register", "a")

    def ids(*options: str) -> list[str]:
        shown = [line.split()[0] for line in agentic("ls", *options).stdout.splitlines()[1:]]
        array = [agent["id"] for agent in json.loads(agentic("ls", "--json", *options).stdout)]
        lines = [json.loads(line)["id"] for line in agentic("ls", "--jsonl", *options).stdout.splitlines()]
        assert shown == array
        assert len(lines) == len(array)
        assert "--limit" in options or sorted(lines) == array
        return shown

    assert ids() == ["a", "b", "c", "d"]
    assert ids("--status", "available") == ["a", "b", "d"]
    assert ids("-c", "x") == ["b", "c", "d"]
    assert ids("-c", "x", "--capability", "y") == ["c", "d"]
    assert ids("-c", "x", "--status", "available", "--limit", "1") == ["b"]
    assert ids("--status", "offline") == []
    assert ids("--limit", "9") == ["a", "b", "c", "d"]
    for wrong in (["--limit", "0"], ["--status", "asleep"], ["--json", "--jsonl"]):
        assert agentic("ls", *wrong).exit_code == 2


@pytest.mark.parametrize("limit", [499, 500, 501, 1000, 1200, None])
def test_a_large_fleet_is_printed_as_lines_of_json(limit: int | None, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"

    async def register() -> list[AgentInfo]:
        async with open_registry(url) as registry:
            return await asyncio.gather(*(registry.register(AgentInfo(f"a{number}")) for number in range(1200)))

    agents = {agent.id: agent for agent in asyncio.run(register())}
    options = [] if limit is None else ["--limit", str(limit)]
    printed = CliRunner().invoke(app, ["ls", "--jsonl", "--url", url, *options]).stdout
    found = {agent.id: agent for agent in map(decode_agent, printed.splitlines())}
    assert len(found) == printed.count("\n") == (limit or 1200)
    assert found.items() <= agents.items()


def test_the_store_and_the_prefix_are_named_before_or_after_the_command(redis_url: str, tmp_path: Path) -> None:
    prefix = f"test-cli-{tmp_path.name}"

    def ids(*arguments: str) -> list[str]:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return [agent["id"] for agent in json.loads(done.stdout)]

    for name in ("one", "two"):
        url = f"{redis_url}?prefix={prefix}-{name}"
        assert CliRunner().invoke(app, ["--url", url, "register", name]).exit_code == 0
    assert ids("--url", redis_url, "--prefix", f"{prefix}-one", "ls", "--json") == ["one"]
    assert ids("--url", redis_url, "ls", "--json", "--prefix", f"{prefix}-two") == ["two"]
    assert ids(
        "--url", "memory://", "--prefix", "x", "ls", "--json", "--url", redis_url, "--prefix", f"{prefix}-one"
    ) == ["one"]
    assert ids("ls", "--json", "--url", f"{redis_url}?prefix={prefix}-one", "--prefix", f"{prefix}-two") == ["two"]
    refused = CliRunner().invoke(app, ["ls", "--url", f"sqlite:///{tmp_path}/x.db", "--prefix", "p"])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: prefix: the sqlite store has no such option: expected ttl, ")
    for name in ("one", "two"):
        asyncio.run(flush(f"{redis_url}?prefix={prefix}-{name}"))


def test_an_agent_is_shown_with_the_age_of_its_heartbeat(agentic: Command) -> None:
    agentic("register", "a")
    assert re.search(
        r"^last_heartbeat  \d{4}-\S+ \S+\+00:00 \(\d+\.\d s ago\)$", agentic("get", "a").stdout, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["get", "ghost"], "error: agent not found: ghost"),
        (["update", "ghost", "--load", "1"], "error: agent not found: ghost"),
        (["update", "other", "--load", "-1"], "error: current_load: must not be negative"),
        (["deregister", "ghost"], "error: agent not found: ghost"),
        (["heartbeat", "ghost", "gone"], "error: agents not found: ghost, gone"),
        (["register", ""], "error: agent ID is required"),
        (["register", "a", "--load", "-1"], "error: current_load: must not be negative"),
        (["reap", "--ttl", "-1"], "error: ttl must not be negative, got -1.0"),
    ],
)
def test_an_error_is_reported_in_one_line(agentic: Command, arguments: list[str], told: str) -> None:
    agentic("register", "other")
    done = agentic(*arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", told + "\n")


@pytest.mark.parametrize(
    "url",
    ["", "bogus", "ftp://x", "redis://u:s3cr3t@[", "sqlite:////no/such/folder/x.db", "redis://:s3cr3t@127.0.0.1:1"],
)
@pytest.mark.parametrize("command", [["ls"], ["demo", "--plain"]])
def test_a_wrong_url_is_reported_in_one_line_without_its_password(url: str, command: list[str]) -> None:
    if command[0] == "demo" and url.startswith("sqlite"):
        return  # the demo uses a temporary file
    done = CliRunner().invoke(app, [*command, "--url", url])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "s3cr3t" not in done.output


@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "ls --json",
        "ls --jsonl",
        "get a",
        "update a --load 1",
        "heartbeat a",
        "deregister a",
        "reap",
        "health",
        "doctor",
    ],
)
def test_every_command_but_register_creates_no_file(command: str, tmp_path: Path) -> None:
    (tmp_path / "other.db").touch()
    for url, advice in (
        (f"sqlite:///{tmp_path}/fleet.db", "registering the first agent creates it"),
        (f"sqlite:///{tmp_path}/no/fleet.db", "does not exist: create it first"),
        (f"sqlite:///{tmp_path}/other.db", "registering the first agent creates it"),
    ):
        done = CliRunner().invoke(app, [*command.split(), "--url", url])
        assert (done.exit_code, done.stdout) == (1, "")
        assert ".db'" in done.stderr or "the file has no registry" in done.stderr
        assert advice in done.stderr
        assert done.stderr.count("\n") == 1
    assert CliRunner().invoke(app, [*command.split(), "--url", "sqlite://"]).exit_code == 1
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [0]
    assert list(Path.home().iterdir()) == []


@pytest.mark.parametrize(
    "command", ["ls", "get a", "update a --load 1", "heartbeat a", "deregister a", "reap", "health", "doctor"]
)
def test_every_command_but_register_leaves_no_agent(command: str, own_redis_server: RedisServer) -> None:
    CliRunner().invoke(app, [*command.split(), "--url", own_redis_server.url])
    assert own_redis_server.admin().keys("*:agent:*") == []


def test_heartbeat_and_deregister_continue_after_a_failure_and_name_it(agentic: Command) -> None:
    for agent_id in ("a", "b"):
        agentic("register", agent_id)
    for command in ("heartbeat", "deregister"):
        done = agentic(command, "gone", "a", "no\nbody", "a", "", "b")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.splitlines() == [
            r"error: agents not found: gone, no\nbody",
            "error: agent ID is required ()",
        ]
    assert json.loads(agentic("ls", "--json").stdout) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "redis://u:s3cr3t@h",
        "ls redis://u:s3cr3t@h",
        "ls s3cr3t",
        "get a s3cr3t b",
        "reap --ttl s3cr3t",
        "reap --ttl=s3cr3t",
        "register a --status redis://:s3cr3t@h",
        "register a --status=s3cr3t",
        "register a --load s3cr3t",
        "register a --meta s3cr3t",
        "demo --agents s3cr3t",
        "s3cr3t",
        "ls --redis://u:s3cr3t@h",
        "ls --url redis://u:s3cr3t@h:x",
        "ls --url s3cr3t",
    ],
)
def test_a_value_in_the_wrong_place_is_not_shown(arguments: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code in (1, 2)
    assert "s3cr3t" not in done.output
    assert "rror: " in done.stderr


def test_a_usage_error_shows_no_control_characters_and_suggests_what_was_meant() -> None:
    assert r"No such option: --\x1b[31m" in CliRunner().invoke(app, ["ls", "--\x1b[31m"]).stderr
    assert "Did you mean 'ls'?" in CliRunner().invoke(app, ["lss"]).stderr


def test_a_wrong_pair_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["register", "a", "--meta", "novalue"]).exit_code == 2


def test_the_version_and_the_help_are_shown() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("agentic 0.")
    assert "demo" in CliRunner().invoke(app, ["--help"]).stdout


def test_the_bare_command_shows_the_same_help() -> None:
    bare = CliRunner().invoke(app, [])
    assert (bare.exit_code, bare.stdout) == (2, CliRunner().invoke(app, ["--help"]).stdout)
    assert "redis://localhost" in bare.stdout


def test_a_command_without_a_store_says_how_to_name_one() -> None:
    done = CliRunner().invoke(app, ["ls"])
    assert (done.exit_code, done.stderr) == (
        1,
        "error: no store is named: pass --url sqlite:///fleet.db, or set AGENTIC_URL\n",
    )


def test_the_doctor_does_not_advise_to_ask_the_doctor() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json", "--url", f"redis://127.0.0.1:{free_port()}"])
    (finding,) = json.loads(done.stdout)
    assert finding["advice"] == "is a server running there?"
    assert "Connect call failed" in finding["found"]


def test_every_command_has_a_short_option_for_its_help() -> None:
    shown = CliRunner().invoke(app, ["-h"])
    assert shown.exit_code == 0
    commands = re.findall(r"^  (\w+)  ", shown.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"ls", "get", "update", "health", "demo"} <= set(commands)
    for command in commands:
        assert CliRunner().invoke(app, [command, "-h"]).stdout == CliRunner().invoke(app, [command, "--help"]).stdout


@pytest.mark.parametrize("width", [38, 78])
def test_no_summary_of_a_command_is_cut(width: int) -> None:
    shown = CliRunner().invoke(app, ["--help"], terminal_width=width).stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert all(len(line) <= width for line in shown.splitlines())


# --- the table ---


def test_a_table_leaves_out_columns_then_crops() -> None:
    agents = [
        AgentInfo(
            "research-worker-7f9c4d5b8", name="日本語の名前です", capabilities=("search", "translate"), max_load=10
        ),
        AgentInfo("b", status=AgentStatus.BUSY, last_heartbeat=LONG_AGO),
    ]
    everything = fleet_lines(agents, LONG_AGO)
    assert [len(line.split("  ")) > 5 for line in everything] == [True, True, True]
    headers = {}
    for width in range(1, 90):
        lines = fleet_lines(agents, LONG_AGO, width)
        assert max(map(cell_len, lines)) <= width
        coloured = fleet_lines(agents, LONG_AGO, width, colours=True)
        assert [Text.from_ansi(line).plain for line in coloured] == lines
        headers[width] = lines[0].split()
    assert headers[89] == ["id", "name", "status", "load", "heartbeat", "capabilities"]
    seen = [names for names in headers.values() if "…" not in "".join(names)]
    assert all(longer[: len(shorter)] != [] and set(shorter) <= set(longer) for shorter, longer in pairwise(seen))
    assert headers[40] == ["id", "status", "heartbeat"]
    assert headers[20] == ["id"]
    assert fleet_lines(agents, LONG_AGO, 40)[1].startswith("research-worker-")
    assert fleet_lines(agents, LONG_AGO, 10, cut="~") == ["id", "research-~", "b"]
    assert fleet_lines([], LONG_AGO) == ["id  name  status  load  heartbeat  capabilities"]


def test_a_hostile_id_does_not_reach_the_terminal_raw() -> None:
    assert escaped("\x1b[31mred\n[bold]").plain == r"\x1b[31mred\n[bold]"


def test_ages_are_shown_in_a_suitable_unit() -> None:
    at = LONG_AGO
    told = [
        age(at, at.fromtimestamp(at.timestamp() + seconds, at.tzinfo)) for seconds in (0, 1.24, 119, 120, 7200, 3e6)
    ]
    assert told == ["0.0 s ago", "1.2 s ago", "119.0 s ago", "2 min ago", "2 h ago", "35 d ago"]
    assert age(None, at) == age(at.replace(year=1), at) == "never"


# --- ids in shells ---


def completed(*words: str, shell: str = "bash", **environment: str) -> list[str]:
    """Return the completions of the last word; for bash, split the words as bash does."""
    parts = [part for word in words for part in re.split("([:=@]+)", word) if part or not word]
    asked = {
        "_AGENTIC_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(["agentic", *parts]),
        "COMP_CWORD": str(len(parts)),
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": " ".join(["agentic", *words]),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (asked | environment).items():
            patch.setenv(name, value)
        patch.setattr("agentic.cli.completion.SECONDS", 60)  # Its timer would exit the test process.
        done = CliRunner().invoke(app, prog_name="agentic")
    assert done.stderr == ""
    return done.stdout.split()


def test_ids_complete_from_the_chosen_store(redis_url: str, tmp_path: Path) -> None:
    prefix = f"test-complete-{tmp_path.name}"
    in_redis, in_file = f"{redis_url}?prefix={prefix}", f"sqlite:///{tmp_path}/fleet.db"
    for url, ids in (in_redis, ("worker:a:1", "worker:a:2")), (in_file, ("coder-1", "robot")):
        for agent_id in ids:
            assert CliRunner().invoke(app, ["register", agent_id, "--url", url]).exit_code == 0
    for command in ("get", "update", "heartbeat", "deregister"):
        assert completed(command, "co", AGENTIC_URL=in_file) == ["coder-1"]
    assert completed("deregister", "coder-1", "", AGENTIC_URL=in_file) == ["coder-1", "robot"]
    for options in (["--url", in_redis], [f"--url={in_redis}"], ["--url", redis_url, "--prefix", prefix]):
        # bash expects only the last part of a split word.
        assert completed(*options, "get", "worker:a", AGENTIC_URL=in_file) == ["a:1", "a:2"]
        assert completed("get", *options, "worker:a:", AGENTIC_URL=in_file) == ["1", "2"]
    assert completed("get", "worker:", shell="fish", AGENTIC_URL=in_redis) == ["worker:a:1", "worker:a:2"]
    assert completed("ls", "--url", in_redis, "--status", "of") == ["offline"]
    asyncio.run(flush(in_redis))


def test_an_id_that_a_shell_could_evaluate_is_not_offered(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    for agent_id in ("a-1", "a$(touch x)", "a`x`", "a b", "a;b", "a*", "a'b", "a\nb"):
        assert CliRunner().invoke(app, ["register", agent_id, "--url", url]).exit_code == 0
    assert completed("get", "a", AGENTIC_URL=url) == ["a-1"]
    assert completed("get", "a", shell="zsh", AGENTIC_URL=url) == ["_arguments", "'*:", """:(("a-1"))'"""]


def test_no_ids_complete_where_there_is_no_store(tmp_path: Path) -> None:
    for url in ("redis://127.0.0.1:1", f"sqlite:///{tmp_path}/no.db", "memory://", "bogus", "sqlite://"):
        assert completed("get", "", AGENTIC_URL=url) == []
    assert list(tmp_path.iterdir()) == list(Path.home().iterdir()) == []


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


def test_the_demo_under_the_documented_rights_says_which_keys_it_needs(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    client.execute_command(*documented_acl())
    url = own_redis_server.url.replace("redis://", "redis://agentic:password@")
    done = CliRunner().invoke(app, ["demo", "--plain", "--agents", "6", "--url", url])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: Redis failed: ")
    assert "/0?prefix=agentic:demo-" in done.stderr.partition("; the demo has to write in redis://")[2]
    assert done.stderr.count("\n") == 1
    client.execute_command("ACL", "SETUSER", "agentic", "~agentic:demo-*")
    assert_demo_went_well(CliRunner().invoke(app, ["demo", "--agents", "6", "--url", url]))


@pytest.mark.parametrize("url", [(), ("--url", "memory://")])
@pytest.mark.parametrize("command", ["ls", "doctor", "health", "get a", "register a", "update a --load 1"])
def test_a_memory_store_is_refused(command: str, url: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command.split(), *url])
    assert done.exit_code == 1
    assert ("name a store by its URL, as in AGENTIC_URL" if url else "no store is named: pass --url") in done.stderr
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
