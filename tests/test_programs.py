"""Programs that are stopped, forked, or wrong about the time, around a Redis that is well."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentic import (
    AgentInfo,
    AgentStatus,
    Reaper,
    RedisRegistry,
)
from agentic.clock import system_clock
from agentic.testing import wait_until
from agentic.testing.servers import RedisServer, wheel_program
from tests.support.waiting import is_there, wait_intervals

# --- a process that is stopped ---

AGENT = """
import asyncio, logging, sys
from agentic import AgentInfo, RedisRegistry
logging.basicConfig(filename=sys.argv[2], level=logging.WARNING)
async def main():
    async with RedisRegistry(sys.argv[1], ttl=3) as registry, registry.session(AgentInfo("a"), interval=0.2):
        logging.warning("begun")
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_an_agent_stopped_for_twice_its_ttl_registers_again(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    with subprocess.Popen([sys.executable, "-c", AGENT, own_redis_server.url, log]) as process:
        try:
            async with RedisRegistry(own_redis_server.url) as registry:
                await wait_until(lambda: log.exists() and "begun" in log.read_text(), "the agent is registered")
                loop = asyncio.get_running_loop()
                process.send_signal(signal.SIGSTOP)
                goes_on_at = loop.time() + 2 * 3
                reaped: list[str] = []
                async with Reaper(registry, ttl=1, interval=0.1, on_reaped=reaped.extend):
                    await wait_until(lambda: "a" in reaped, "the reaper has reported it")
                    assert [agent.status for agent in await registry.list()] == [AgentStatus.OFFLINE]

                    async def gone() -> bool:
                        return not await registry.list()

                    await wait_until(gone, "its lease has run out")
                    await asyncio.sleep(goes_on_at - loop.time())
                    process.send_signal(signal.SIGCONT)
                    await wait_until(is_there(registry), "it has registered again")
                    assert (await registry.get("a")).status is AgentStatus.AVAILABLE
                    assert reaped == ["a"]
                await wait_until(lambda: "registered again" in log.read_text(), "it has said so")
        finally:
            process.kill()
    assert "the event loop or the process was blocked" in log.read_text()


# --- a fork ---


async def test_a_forked_process_gets_an_error_that_names_the_fork(redis_url: str, tmp_path: Path) -> None:
    script = """
import asyncio, os, sys
from agentic import RedisRegistry, RegistryClosedError
async def main():
    async with RedisRegistry(sys.argv[1]) as registry:
        child = os.fork()
        if child == 0:
            try:
                await registry.list()
            except RegistryClosedError as error:
                os.write(1, f"{error}\\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.write(1, f"{len(await registry.list())} agents\\n".encode())
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, redis_url.replace("/0", "/5")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = "the registry was opened before this process was forked: open one after the fork\n0 agents\n"
    assert done.stdout == expected, done.stderr


# --- clocks ---


async def test_a_clients_clock_changes_nothing(redis_url: str, tmp_path: Any) -> None:
    library = libfaketime()
    script = (
        "import asyncio, sys\nfrom agentic import AgentInfo, RedisRegistry\n"
        "async def main():\n"
        "    async with RedisRegistry(sys.argv[1], prefix='skewed') as registry:\n"
        "        await registry.register(AgentInfo(sys.argv[2]))\n"
        "        await registry.heartbeat(sys.argv[2])\n"
        "        print(await registry.reap(60))\n"
        "asyncio.run(main())\n"
    )
    async with RedisRegistry(redis_url, prefix="skewed") as registry:
        for skew in ("+1h", "-1h"):
            environment = {"LD_PRELOAD": library, "FAKETIME": skew, "PATH": "/usr/bin:/bin"}
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", script, redis_url, skew],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.stdout == "[]\n", done.stderr
            now = await registry.store_time()
            heard_of_at = (await registry.get(skew)).last_heartbeat
            assert heard_of_at is not None
            assert abs((now - heard_of_at).total_seconds()) < 30
        assert await registry.reap(60) == []
        assert await registry.flush() == 2


async def test_who_died_before_a_step_back_of_the_servers_clock_is_marked_and_then_gone(tmp_path: Any) -> None:
    file = tmp_path / "faketime"
    file.write_text("+0\n")
    preload = {"LD_PRELOAD": libfaketime(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}
    with RedisServer(program=wheel_program(), environment=preload) as server:
        async with RedisRegistry(server.url, ttl=3) as registry:
            registered_at = (await registry.register(AgentInfo("dead"))).last_heartbeat
            assert registered_at is not None
            file.write_text("-3600\n")

            async def is_stepped() -> bool:
                return await registry.store_time() < registered_at

            await wait_until(is_stepped, "the server's clock is back")
            assert await registry.reap(1) == []

            async def is_marked() -> bool:
                return await registry.reap(1) == ["dead"]

            async def is_gone() -> bool:
                return await registry.list() == []

            await wait_until(is_marked, "the agent is marked offline")
            await wait_until(is_gone, "the agent is gone")


@pytest.mark.parametrize("ttl", [None, 300.0])
@pytest.mark.parametrize("step", ["+3600", "-3600"])
async def test_a_step_of_the_servers_clock_takes_no_living_agent_offline(
    step: str, ttl: float | None, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agentic")
    file = tmp_path / "faketime"
    file.write_text("+0\n")
    preload = {
        "LD_PRELOAD": libfaketime(),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    reaped: list[str] = []
    # Servers with an allocator of their own do not start under libfaketime; the wheel's has none.
    with RedisServer(program=wheel_program(), environment=preload) as server:
        async with (
            RedisRegistry(server.url, ttl=ttl, timeout=1) as registry,
            registry.session(AgentInfo("alive"), interval=0.5) as session,
            Reaper(registry, ttl=2, interval=0.5, on_reaped=reaped.extend),
        ):
            await asyncio.sleep(1)
            stepped_at = system_clock()
            file.write_text(f"{step}\n")

            async def is_back() -> bool:
                beaten = (session.last_beat_at or stepped_at) > stepped_at
                return beaten and [agent.id for agent in await registry.list()] == ["alive"]

            # With a ttl, the step forward takes all there is; the session brings its agent back at its next heartbeat.
            await wait_intervals(is_back, "the session has beaten", within=1, interval=0.5, call=1)
            await wait_until(lambda: "clock was stepped" in caplog.text, "the step is told")
            await asyncio.sleep(2)
            assert reaped == []
            assert (await registry.get("alive")).status is AgentStatus.AVAILABLE


def libfaketime() -> str:
    """The path of libfaketime; without it a skip that says what to install, or a failure where it was to be installed."""
    from pathlib import Path  # noqa: PLC0415

    found = next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"))), None)
    if found is None:
        missing = "needs libfaketime: apt install libfaketime"
        if os.environ.get("AGENTIC_TEST_NEEDS_TOOLS"):
            pytest.fail(missing)
        pytest.skip(missing)
    return str(found)
