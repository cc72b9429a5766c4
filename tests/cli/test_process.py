"""The command as a process: in pipes, on terminals, interrupted, and with a failing store."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from agentic import AgentInfo, AgentStatus, RegistryError, open_registry
from agentic.cli.terminal import exit_in_one_line
from agentic.testing import RedisServer
from tests.support.proxy import Proxy
from tests.support.stores import LONG_AGO

COMMAND = [sys.executable, "-W", "error", "-m", "agentic"]
LONG_ID = "research-worker-7f9c4d5b8-x2lqp-b1946ac9-2492-4d23"
HOSTILE = "see :warning: [red]x[/red] \x9b31m \x7f \u202e \x1b[31m \u2028 😀 ü"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def restore_signals(*, but_ctrl_c: bool = False) -> None:
    """Restore the default signal handlers, which a shell disables for background programs such as these tests."""
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    if but_ctrl_c:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": restore_signals, **options}
    with subprocess.Popen([*COMMAND, *arguments], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def on_terminal(
    *arguments: str,
    columns: int,
    rows: int = 60,
    at_line: Callable[[str], None] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, str]:
    """Run the command on a new terminal; return its exit code and output."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(terminal, (rows, columns))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    shown = b""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=end, stderr=end, env={**inherited, "TERM": "xterm", **environment}
    ) as process:
        os.close(end)
        while more := _read(terminal):
            shown += more
            if at_line is not None:
                at_line(shown.decode(errors="ignore"))
        code = process.wait()
    os.close(terminal)
    return code, shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # on Linux, the other end is closed
        return b""


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the command ended without {text!r}")


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"did not come true within 20 s: {what}"
        time.sleep(0.01)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a file with two agents."""
    url = f"sqlite:///{tmp_path}/fleet.db"

    async def register() -> None:
        async with open_registry(url) as registry:
            await registry.register(
                AgentInfo(LONG_ID, name="Research in eu-west-1a", capabilities=("search.web", "papers"))
            )
            await registry.register(AgentInfo("team:robot:1", name=HOSTILE))

    asyncio.run(register())
    return url


# --- what is printed ---


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    done = run("register", "a", "--url", url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(run("ls", "--json", "--url", url).stdout)[0]["id"] == "a"


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "20"}, {"FORCE_COLOR": "1"}])
def test_a_pipe_gets_one_line_for_each_agent(url: str, environment: dict[str, str]) -> None:
    done = run("ls", "--url", url, **environment)
    _, first, second = done.stdout.splitlines()
    assert LONG_ID in first
    assert "search.web, papers" in first
    assert "team:robot:1" in second
    assert done.stderr == ""


@pytest.mark.parametrize("columns", [200, 80, 40])
def test_a_terminal_gets_lines_that_fit(url: str, columns: int) -> None:
    code, shown = on_terminal("ls", "--url", url, columns=columns)
    lines = [without_styles(line) for line in shown.splitlines()]
    assert code == 0
    assert [line.split()[0] for line in lines[:3]] == ["id", lines[1].split()[0], "team:robot:1"]
    assert "".join(lines[3:]) == f"2 agents in {url}"
    assert all(len(line) <= columns for line in lines[:3])
    assert (LONG_ID in shown) == (columns == 200)
    assert "research-worker" in lines[1]
    assert "available" in lines[1]
    assert " s ago" in lines[1]


def test_a_terminal_that_cannot_show_an_ellipsis_gets_a_tilde(url: str) -> None:
    _, shown = on_terminal("ls", "--url", url, columns=40, environment={"PYTHONIOENCODING": "ascii"})
    assert re.search(r"research-worker-\S*~ ", shown)
    assert r"\u2026" not in shown


def test_colours_are_for_terminals_that_want_them(url: str) -> None:
    def has_styles(**environment: str) -> bool:
        return "\x1b[32mavailable" in on_terminal("ls", "--url", url, columns=120, environment=environment)[1]

    assert has_styles()
    assert not has_styles(NO_COLOR="1")
    assert not has_styles(TERM="dumb")


@pytest.mark.parametrize("command", ["get team:robot:1", "doctor", "--help", "ls --help", "register -h"])
def test_words_are_not_folded_on_a_narrow_terminal(url: str, command: str) -> None:
    arguments = command.split() if command.endswith("-h") or "--help" in command else [*command.split(), "--url", url]
    whole = {word for line in on_terminal(*arguments, columns=200)[1].splitlines() for word in line.split()}
    code, shown = on_terminal(*arguments, columns=40)
    assert code == 0
    assert all(len(without_styles(line)) <= 40 for line in shown.splitlines())
    common = {word for word in whole if len(word) < 14 and word.isalpha()}
    assert common - set(shown.split()) == set()


def without_styles(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_is_what_is_stored_and_safe_on_a_terminal(url: str, encoding: str) -> None:
    shown = run("get", "team:robot:1", "--json", "--url", url, PYTHONIOENCODING=encoding).stdout
    listed = run("ls", "--json", "--url", url, PYTHONIOENCODING=encoding).stdout
    for output in (shown, listed):
        assert output.replace("\n", "").isprintable()
        assert ("😀 ü" in output) == (encoding == "utf-8")
    one, fleet = json.loads(shown), json.loads(listed)
    assert (one["id"], one["name"]) == ("team:robot:1", HOSTILE)
    assert one in fleet
    assert [agent["id"] for agent in fleet] == [LONG_ID, "team:robot:1"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_shows_markup_literally_and_control_characters_escaped(url: str, encoding: str) -> None:
    for command in (["ls"], ["get", "team:robot:1"]):
        shown = run(*command, "--url", url, PYTHONIOENCODING=encoding).stdout
        assert r"see :warning: [red]x[/red] \x9b31m \x7f \u202e \x1b[31m \u2028" in shown
        assert "team:robot:1" in shown
        assert shown.replace("\n", "").isprintable()


def test_the_name_of_a_store_is_shown_literally(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/:warning:[red].db"
    assert run("register", "a", "--url", url).returncode == 0
    assert f"1 agent in {url}\x1b" in on_terminal("ls", "--url", url, columns=300)[1]


def test_ages_are_by_the_clock_of_the_store(redis_server: RedisServer, tmp_path: Path) -> None:
    url = f"{redis_server.url}?prefix=test-ages-{tmp_path.name}"
    assert run("register", "a", "--url", url).returncode == 0
    skewed = (
        "import datetime, agentic.clock\n"
        "agentic.clock.system_clock = lambda: datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=6)\n"
        "from agentic.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", skewed, "ls", "--url", url], capture_output=True, text=True, timeout=60, check=True
    )
    assert " s ago" in done.stdout


def test_an_interactive_command_names_the_store_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTIC_URL", url)
    assert f"store: {url}" in on_terminal("get", LONG_ID, columns=300)[1]
    assert run("get", LONG_ID).stderr == ""


# --- what goes wrong ---


@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "ls --json",
        "ls --jsonl",
        "get team:robot:1",
        "get team:robot:1 --json",
        "health",
        "doctor",
        "--help",
        "demo --plain",
    ],
)
def test_a_closed_pipe_ends_the_command_silently(url: str, command: str) -> None:
    arguments = command.split() if command == "--help" else [*command.split(), "--url", url]
    with started(*arguments) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_a_closed_pipe_ends_the_demo_and_removes_its_agents(own_redis_server: RedisServer) -> None:
    with started("demo", "--plain", "--url", own_redis_server.url) as process:
        wait_for_line(process, "registered")
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 1
    assert own_redis_server.admin().keys("*demo*:agent:*") == []


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            ExceptionGroup("", [ExceptionGroup("", [RegistryError(500, "a\x1b"), RegistryError(500, "a\x1b")])]),
            1,
            r"a\x1b",
        ),
        (ExceptionGroup("", [RegistryError(500, "a"), OSError(24, "too many")]), 1, "a\nerror: [Errno 24] too many"),
    ],
)
def test_a_group_of_errors_ends_with_a_line_for_each_kind(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, exit_in_one_line():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr().err == (f"error: {told}\n" if told else "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ExceptionGroup), exit_in_one_line():
        raise ExceptionGroup("", [RegistryError(500, "a"), ZeroDivisionError()])


@pytest.mark.parametrize("command", ["ls", "get team:robot:1", "get team:robot:1 --json", "doctor", "demo --plain"])
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_an_error(url: str, command: str, redirection: str) -> None:
    line = f'"$@" {command} --url {url} {redirection}'
    done = subprocess.run(["sh", "-c", line, "sh", *COMMAND], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output could not be written: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "2>/dev/full"])
def test_a_command_without_output_needs_none(url: str, redirection: str) -> None:
    line = f'"$@" heartbeat {LONG_ID} --url {url} {redirection}'
    assert subprocess.run(["sh", "-c", line, "sh", *COMMAND], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignoring_ctrl_c", [False, True])
def test_a_signal_ends_the_demo_without_a_trace(
    number: signal.Signals, ignoring_ctrl_c: bool, own_redis_server: RedisServer
) -> None:
    before = partial(restore_signals, but_ctrl_c=ignoring_ctrl_c)
    with started("demo", "--plain", "--url", own_redis_server.url, preexec_fn=before) as process:
        wait_for_line(process, "registered")
        process.send_signal(number)
        ignored = ignoring_ctrl_c and number == signal.SIGINT
        assert process.wait(30) == (0 if ignored else 128 + number)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert own_redis_server.admin().keys("*demo*:agent:*") == []


async def test_an_interrupted_reap_has_printed_every_agent_that_it_marked(own_redis_server: RedisServer) -> None:
    async with open_registry(own_redis_server.url) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"a{n}", last_heartbeat=LONG_AGO)) for n in range(2000)))
        async with Proxy(own_redis_server.port) as proxy:
            proxy.delay = 0.2
            command = [*COMMAND, "reap", "--url", proxy.url]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, preexec_fn=restore_signals)
            assert process.stdout is not None
            first = await process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, _ = await process.communicate()
        assert process.returncode == 130
        offline = {agent.id for agent in await registry.list() if agent.status is AgentStatus.OFFLINE}
    assert set((first + rest).decode().split()) == offline
    assert 0 < len(offline) < 2000


def test_a_second_signal_ends_the_command_at_once(own_redis_server: RedisServer) -> None:
    with started("demo", "--plain", "--url", own_redis_server.url) as process:
        wait_for_line(process, "registered")
        own_redis_server.pause()
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_dead_store_gives_one_line_and_no_traceback() -> None:
    done = run("ls", "--url", "redis://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: failed to connect to Redis: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("plain", [True, False])
def test_a_store_that_dies_ends_the_demo_with_one_line(plain: bool, own_redis_server: RedisServer) -> None:
    arguments = ["demo", *(["--plain"] if plain else []), "--url", own_redis_server.url]

    def stop_when_running(shown: str) -> None:
        if "registered" in shown.replace("registered by", ""):
            own_redis_server.stop()

    code, shown = on_terminal(*arguments, columns=100, at_line=stop_when_running)
    assert code == 1
    assert "Traceback" not in shown
    assert "warning" not in shown
    assert without_styles(shown.splitlines()[-1]).startswith("error: Redis failed: ")


def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['typer'] = None; from agentic.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        'error: the command line needs an extra: pip install "agentic-registry[cli]"\n',
    )


# --- health ---


def test_health_is_one_line_and_an_exit_code(url: str, own_redis_server: RedisServer) -> None:
    for store in (url, own_redis_server.url):
        done = run("health", "--timeout", "20", "--url", store)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(rf"ok: {re.escape(store)} answered in \d+ ms\n", done.stdout)
    assert own_redis_server.admin().keys() == []
    own_redis_server.stop()
    done = run("health", "--url", own_redis_server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: failed to connect to Redis: ")
    assert done.stderr.count("\n") == 1


def test_health_ends_in_time_although_the_server_hangs(own_redis_server: RedisServer) -> None:
    own_redis_server.pause()
    done = run("health", "--timeout", "1", "--url", f"{own_redis_server.url}?timeout=1000")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"no answer within 0\.9 s|did not answer within 1 s", done.stderr)
    assert done.stderr.count("\n") == 1


def hanging_names(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a name server that does not answer for a minute."""
    code = (
        "import socket, sys, time\n"
        "socket.getaddrinfo = lambda *_, **__: time.sleep(60)\n"
        "sys.argv[0] = 'agentic'\n"
        "from agentic.__main__ import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_health_ends_in_time_although_the_name_server_hangs() -> None:
    done = hanging_names("health", "--timeout", "1", "--url", "redis://redis.example")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: redis://redis.example did not answer within 1 s\n"


# --- ids in shells ---


def test_no_ids_complete_where_no_store_answers_in_time(own_redis_server: RedisServer) -> None:
    own_redis_server.pause()
    for url in (f"{own_redis_server.url}?timeout=1000", "redis://redis.example"):
        asked = {"_AGENTIC_COMPLETE": "complete_bash", "COMP_WORDS": "agentic\nget\n", "COMP_CWORD": "2"}
        done = hanging_names(**asked, AGENTIC_URL=url)
        assert (done.stdout.strip(), done.stderr) == ("", "")


# --- the demo ---


def test_the_demo_shows_a_live_table_on_a_terminal() -> None:
    code, shown = on_terminal("demo", "--agents", "6", "--url", "memory://", columns=100)
    assert code == 0
    assert shown.count("heartbeat  capabilities") > 10
    assert "taken offline by the reaper" in shown
    last = shown.rpartition("heartbeat  capabilities")[2]
    assert "\x1b[2K" not in last  # The final frame is not erased.
    last = without_styles(last)
    assert [line.split()[0] for line in last.splitlines()[1:7]] == [f"agent-0{number}" for number in range(1, 7)]
    assert "demo: the sessions ended and deregistered their agents" in last
    assert "6 agents registered, 2 fell silent, 2 were taken offline, 1 came back." in last
    assert "next: agentic register my-agent --url sqlite:///fleet.db" in last


def test_the_events_of_the_demo_are_seen_below_more_agents_than_rows() -> None:
    code, shown = on_terminal("demo", "--agents", "100", "--url", "memory://", columns=40, rows=24)
    assert code == 0
    frames = [part.splitlines() for part in shown.split("\x1b[1mid ")[1:]]
    assert all(len(frame) < 24 for frame in frames)
    last = [without_styles(line) for line in frames[-1]]
    assert any(re.match(r"and \d+ more: \d+ available", line) for line in last)
    assert "demo: the sessions ended and deregister…" in last
    assert all(len(line) <= 40 for line in last if "agentic" not in line)


def test_a_large_fleet_registers_as_fast_as_a_small_one() -> None:
    done = run("demo", "--agents", "150", "--url", "memory://")
    assert done.returncode == 0
    times = [
        float(line.split()[0]) for line in done.stdout.splitlines() if " s  agent-" in line and "registered" in line
    ]
    assert len(times) == 150
    assert times[-1] < 149 * 0.1  # One every 0.1 s would take longer.
