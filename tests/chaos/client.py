"""One client process: permanent sessions, short-lived agents, a reader, and a reaper."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from contextlib import suppress

import anyio
import msgspec

from agentic import AgentInfo, AgentNotFoundError, AgentReplacedError, BackendError, Reaper
from tests.chaos.history import Journal
from tests.chaos.recorded import Recorded, RecordedSQLite, with_bug
from tests.chaos.setting import IDLE_AGENTS, IDLE_TTL, INTERVAL, SHARED, STALE_AFTER, TICK, TIMEOUT, TTL, Setting


class Client:
    """Two registries on one store, so that changes run concurrently with an agent's own calls; a third for idle agents."""

    def __init__(self, setting: Setting, journal: Journal) -> None:
        self._setting = setting
        self._journal = journal
        self._registry = _registry(setting, journal, "registry", TTL)
        self._control = _registry(setting, journal, "control", TTL)
        self._idle = _registry(setting, journal, "idle", IDLE_TTL)
        self._chance = random.Random(f"{setting.seed} {setting.who}")
        self._stop = asyncio.Event()
        self._entered = 0
        self._loads = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        async with self._registry, self._control, self._idle:
            ticking = asyncio.create_task(self._tick())
            async with Reaper(self._registry, ttl=STALE_AFTER, interval=INTERVAL), asyncio.TaskGroup() as tasks:
                for number in range(self._setting.sessions):
                    tasks.create_task(self._stay(f"{self._setting.who}-stays-{number}"))
                for number in range(self._setting.others):
                    tasks.create_task(self._come_and_go(f"{self._setting.who}-visits-{number}", self._visit))
                    tasks.create_task(self._come_and_go(f"{self._setting.who}-lives-{number}", self._live))
                for number in range(self._setting.shared):
                    tasks.create_task(self._share(f"{SHARED}{number}"))
                tasks.create_task(self._register_idle_agents())
                tasks.create_task(self._read_at_random())
            ticking.cancel()
            await asyncio.wait([ticking])
        left = asyncio.all_tasks() - {asyncio.current_task()}
        self._journal.note("ended", " ".join(map(str, left)))
        # The runner checks what this process still has open, then closes the pipe.
        await asyncio.to_thread(sys.stdin.read)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._journal.note("tick")

    # --- lives ---

    async def _stay(self, agent_id: str) -> None:
        async with self._registry.session(_agent(agent_id), interval=INTERVAL) as session:
            self._entered += 1
            if self._entered == self._setting.sessions:
                self._journal.note("ready")
            while await self._pause():
                with suppress(BackendError, AgentNotFoundError):
                    if self._chance.random() < 0.5:
                        await session.update(current_load=self._load())
                    else:
                        await self._control.update(agent_id, current_load=self._load())

    async def _come_and_go(self, name: str, life: object) -> None:
        generation = 0
        while await self._pause():
            generation += 1
            with suppress(BackendError, AgentNotFoundError):
                await life(f"{name}-{generation}")  # type: ignore[operator]

    async def _visit(self, agent_id: str) -> None:
        async with self._registry.session(_agent(agent_id), interval=INTERVAL) as session:
            for _ in range(self._chance.randrange(8)):
                await self._pause()
                await session.update(current_load=self._load())
        await self._pause()
        await self._control.get(agent_id)

    async def _share(self, agent_id: str) -> None:
        """Compete with other clients for one agent, each time as a new start, until another one replaces it."""
        while await self._pause():
            with suppress(BackendError, AgentReplacedError):
                async with self._registry.session(_agent(agent_id), interval=INTERVAL) as session:
                    for _ in range(self._chance.randrange(20)):
                        if session.replaced.is_set() or not await self._pause():
                            break
                        with suppress(BackendError):
                            await session.update(current_load=self._load())

    async def _live(self, agent_id: str) -> None:
        """Send heartbeats on one registry while the other changes the agent and then removes it."""
        await self._registry.register(_agent(agent_id))
        beating = asyncio.create_task(self._beat(agent_id))
        try:
            for _ in range(self._chance.randrange(12)):
                await self._pause()
                await self._control.update(agent_id, current_load=self._load())
            await self._control.deregister(agent_id)
            await self._pause()
        finally:
            beating.cancel()
            await asyncio.wait([beating])
        await self._control.get(agent_id)

    async def _beat(self, agent_id: str) -> None:
        while True:
            with suppress(BackendError, AgentNotFoundError):
                await self._registry.heartbeat(agent_id)
            await asyncio.sleep(self._chance.uniform(0.0, 0.05))

    async def _register_idle_agents(self) -> None:
        """Register missing idle agents, at the start and whenever the store has lost its data."""
        idle = {f"{self._setting.who}-idle-{number}" for number in range(IDLE_AGENTS)}
        while not self._stop.is_set():
            with suppress(BackendError):
                missing = sorted(idle - {agent.id for agent in await self._idle.list()})
                await asyncio.gather(*(self._idle.register(_agent(i)) for i in missing), return_exceptions=True)
            with anyio.move_on_after(2 * INTERVAL):
                await self._stop.wait()

    async def _read_at_random(self) -> None:
        while await self._pause():
            with suppress(BackendError):
                agents = await self._control.list()
                for agent in self._chance.sample(agents, min(5, len(agents))):
                    with suppress(AgentNotFoundError):
                        await self._control.get(agent.id)

    async def _pause(self) -> bool:
        """Pause for a short random time; return False once stopping."""
        with anyio.move_on_after(self._chance.uniform(0.01, 0.25)):
            await self._stop.wait()
        return not self._stop.is_set()

    def _load(self) -> int:
        self._loads += 1
        return self._loads


def _agent(agent_id: str) -> AgentInfo:
    return AgentInfo(agent_id, metadata={"id": agent_id})


def _registry(setting: Setting, journal: Journal, name: str, ttl: float) -> Recorded:
    made: Recorded
    if setting.url.startswith("sqlite"):
        made = RecordedSQLite(setting.url.removeprefix("sqlite://"), ttl=ttl, timeout=TIMEOUT)
    else:
        made = with_bug(setting.bug, setting.url, ttl=ttl, timeout=TIMEOUT)
    made.journal, made.name = journal, name
    return made


async def main(setting: Setting) -> None:
    """Run until SIGTERM, then wait for the end of the input."""
    with Journal(setting.journal, setting.who) as journal:
        await Client(setting, journal).run()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Setting)))
