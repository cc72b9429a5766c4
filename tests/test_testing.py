"""`agentic.testing` in other people's projects: which tests run, what a failure shows, and what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentic.testing import FakeClock, RedisServer, wait_until
from tests.support.documents import run_python

HEAD = """
from datetime import timedelta

import pytest
from msgspec.structs import replace

from agentic import AgentRegistry
from agentic.backends.memory import MemoryBackend
from agentic.testing import RegistryContract, StoreUnderTest


class Store(StoreUnderTest):
    lacks = {
        "corruption": "objects cannot be damaged",
        "foreign writes": "no other program sees the dict",
        "sharing": "one registry, one dict",
    }
    backend = MemoryBackend

    def make(self, *, ttl=None, timeout=5.0, **options):
        return AgentRegistry(self.backend(ttl=ttl, timeout=timeout, clock=self.clock), **options)


class TestSound(RegistryContract):
    @pytest.fixture
    def store(self):
        return Store()
"""

BROKEN = {
    "a heartbeat does not bring back an offline agent": (
        """
    async def touch(self, beats):
        before = await self.fetch([agent_id for agent_id, _ in beats])
        found = await super().touch(beats)
        offline = [(agent.id, {"status": agent.status}, 0) for agent in before if agent and agent.status == "offline"]
        await self.patch(offline)
        return found
""",
        "test_heartbeat_stamps_and_revives_an_agent",
    ),
    "a sweep takes agents exactly ttl old": (
        """
    async def sweep(self, ttl, cursor):
        return await super().sweep(ttl - timedelta(microseconds=1) if ttl else ttl, cursor)
""",
        "test_exactly_ttl_old_is_alive_and_a_microsecond_more_is_stale",
    ),
    "an update renews the ttl": (
        """
    async def patch(self, changes):
        changed = await super().patch(changes)
        await self.insert([agent for agent in changed if agent])
        return changed
""",
        "test_update_and_reap_do_not_renew_the_ttl",
    ),
    "a walk gives an agent twice": (
        """
    async def scan(self, cursor):
        agents, cursor = await super().scan(cursor)
        return [*agents, *agents[:1]], cursor
""",
        "test_list_and_scan_return_every_agent_once",
    ),
    "heartbeats in the future are kept": (
        """
    async def insert(self, agents):
        stored = await super().insert(agents)
        for agent in agents:
            if agent.last_heartbeat:
                self._leases[agent.id].agent = agent
        return stored

    async def fetch(self, ids):
        leases = [self._leases.get(agent_id) for agent_id in ids]
        return [lease and lease.agent for lease in leases]
""",
        "test_register_stores_a_heartbeat_in_the_future_as_now",
    ),
    "agents that are gone are still there": (
        """
    async def fetch(self, ids):
        return [lease and lease.agent for lease in map(self._leases.get, ids)]
""",
        "test_an_agent_is_gone_when_it_was_not_written_for_the_ttl",
    ),
    "an earlier start sends heartbeats": (
        """
    async def touch(self, beats):
        return await super().touch([(agent_id, 0) for agent_id, _ in beats])
""",
        "test_a_call_of_an_earlier_start_is_refused",
    ),
    "a registration ends a drain": (
        """
    async def insert(self, agents):
        await self.set_drains([(agent.id, None) for agent in agents])
        return await super().insert(agents)
""",
        "test_a_drain_survives_whatever_happens_to_its_agent",
    ),
}


def contract(folder: Path, code: str, *arguments: str, mode: str = "strict", fails: bool = False) -> str:
    """Run tests in a project that has this code."""
    (folder / "test_store.py").write_text(HEAD + code, encoding="utf-8")
    (folder / "pytest.ini").write_text(
        f"[pytest]\naddopts = --strict-markers --strict-config\nasyncio_mode = {mode}\n"
        "asyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n",
        encoding="utf-8",
    )
    plugins = ("-p", "no:cacheprovider", "-p", "no:valkey", "-p", "no:randomly", "-p", "no:xdist")
    return run_python("-m", "pytest", "-q", "-ra", *plugins, *arguments, cwd=folder, fails=fails)


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_contract_runs_in_both_modes_of_pytest_asyncio(mode: str, tmp_path: Path) -> None:
    printed = contract(
        tmp_path, "", "-k", "test_register or another_event_loop or corrupt or deregistrations", mode=mode
    )
    assert re.search(r"^\d+ passed, \d+ skipped", printed, re.MULTILINE), printed
    assert "Store lacks corruption: objects cannot be damaged" in printed
    assert "Store lacks sharing: one registry, one dict" in printed


def test_an_ability_that_is_neither_there_nor_named_as_lacking_fails(tmp_path: Path) -> None:
    code = """
class Forgetful(Store):
    lacks = {}


class TestForgetful(RegistryContract):
    @pytest.fixture
    def store(self):
        return Forgetful()
"""
    printed = contract(tmp_path, code, "-k", "TestForgetful and corrupt", fails=True)
    assert 'define corrupt, or say in lacks["corruption"] why it cannot be done' in printed


def broken(name: str, methods: str) -> str:
    """Return a test class for a backend that has these methods."""
    return f"""
class Backend{name}(MemoryBackend):
{methods}

class Store{name}(Store):
    backend = Backend{name}


class Test{name}(RegistryContract):
    @pytest.fixture
    def store(self):
        return Store{name}()
"""


def test_a_broken_store_fails_the_test_of_its_promise(tmp_path: Path) -> None:
    # In one run, because starting pytest takes longer than these tests.
    names = {f"Broken{number}": test for number, (_, test) in enumerate(BROKEN.values())}
    code = "".join(broken(name, methods) for name, (methods, _) in zip(names, BROKEN.values(), strict=True))
    wanted = [f"(Test{name} and {test})" for name, test in names.items()]
    sound = f"(TestSound and ({' or '.join(names.values())}))"
    printed = contract(tmp_path, code, "-k", " or ".join([*wanted, sound]), fails=True)
    for name, test in names.items():
        assert f"FAILED test_store.py::Test{name}::{test}" in printed
    assert "FAILED test_store.py::TestSound" not in printed
    assert "assert ['agent-00000', 'agent-00000'] == ['agent-00000']" in printed  # A failure shows what differs.


def test_without_pytest_an_error_names_the_extra() -> None:
    hide = "import sys; sys.modules['pytest'] = None; import agentic.testing"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert "ImportError: agentic.testing needs pytest: pip install 'agentic-registry[testing]'" in done.stderr


def test_a_fake_clock_stands_when_it_is_stopped_and_moves_with_the_real_one_otherwise() -> None:
    clock = FakeClock()
    before = clock()
    clock.advance(3600)
    assert 3600 <= (clock() - before).total_seconds() < 3660
    clock.stop()
    stopped = clock()
    assert clock() == stopped
    clock.advance(-60)
    assert (clock() - stopped).total_seconds() == -60


async def test_what_does_not_come_true_is_named() -> None:
    with pytest.raises(AssertionError, match="^not true within 0.05 s: pigs fly$"):
        await wait_until(lambda: False, "pigs fly", within=0.05)


def test_a_server_is_stopped_started_on_its_port_and_leaves_nothing() -> None:
    with RedisServer() as server:
        port = server.port
        server.admin().set("a", 1)
        server.stop()
        server.start()
        assert server.port == port
        assert server.admin().get("a") is None
    assert not server.folder.exists()
