"""One client process: sessions that stay, agents that come and go, somebody who looks on, and a reaper."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from contextlib import suppress

import anyio
import msgspec

from agentic import AgentInfo, AgentNotFoundError, BackendError, Reaper
from tests.chaos.history import Journal
from tests.chaos.recorded import Recorded, RecordedSQLite, with_bug
from tests.chaos.setting import CROWD, CROWD_KEPT_FOR, INTERVAL, KEPT_FOR, STALE_AFTER, TICK, TIMEOUT, Setting


class Client:
    """Two registries of one store, so that what is done to an agent meets what it does itself, and one for the crowd."""

    def __init__(self, setting: Setting, journal: Journal) -> None:
        self._setting = setting
        self._journal = journal
        self._registry = _registry(setting, journal, "registry", KEPT_FOR)
        self._control = _registry(setting, journal, "control", KEPT_FOR)
        self._crowds = _registry(setting, journal, "crowds", CROWD_KEPT_FOR)
        self._chance = random.Random(f"{setting.seed} {setting.who}")
        self._stop = asyncio.Event()
        self._entered = 0
        self._loads = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        async with self._registry, self._control, self._crowds:
            ticking = asyncio.create_task(self._tick())
            async with Reaper(self._registry, ttl=STALE_AFTER, interval=INTERVAL), asyncio.TaskGroup() as tasks:
                for number in range(self._setting.sessions):
                    tasks.create_task(self._stay(f"{self._setting.who}-stays-{number}"))
                for number in range(self._setting.others):
                    tasks.create_task(self._come_and_go(f"{self._setting.who}-visits-{number}", self._visit))
                    tasks.create_task(self._come_and_go(f"{self._setting.who}-lives-{number}", self._live))
                tasks.create_task(self._tend_the_crowd())
                tasks.create_task(self._look_on())
            ticking.cancel()
            await asyncio.wait([ticking])
        left = asyncio.all_tasks() - {asyncio.current_task()}
        self._journal.note("ended", " ".join(map(str, left)))
        # The conductor looks at what this process has open still, and then closes its end.
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
            while await self._pauses():
                with suppress(BackendError, AgentNotFoundError):
                    if self._chance.random() < 0.5:
                        await session.update(current_load=self._load())
                    else:
                        await self._control.update(agent_id, current_load=self._load())

    async def _come_and_go(self, name: str, life: object) -> None:
        generation = 0
        while await self._pauses():
            generation += 1
            with suppress(BackendError, AgentNotFoundError):
                await life(f"{name}-{generation}")  # type: ignore[operator]

    async def _visit(self, agent_id: str) -> None:
        async with self._registry.session(_agent(agent_id), interval=INTERVAL) as session:
            for _ in range(self._chance.randrange(8)):
                await self._pauses()
                await session.update(current_load=self._load())
        await self._pauses()
        await self._control.get(agent_id)

    async def _live(self, agent_id: str) -> None:
        """Beat on one registry while the other changes the agent, and removes it in the middle of that."""
        await self._registry.register(_agent(agent_id))
        beating = asyncio.create_task(self._beat(agent_id))
        try:
            for _ in range(self._chance.randrange(12)):
                await self._pauses()
                await self._control.update(agent_id, current_load=self._load())
            await self._control.deregister(agent_id)
            await self._pauses()
        finally:
            beating.cancel()
            await asyncio.wait([beating])
        await self._control.get(agent_id)

    async def _beat(self, agent_id: str) -> None:
        while True:
            with suppress(BackendError, AgentNotFoundError):
                await self._registry.heartbeat(agent_id)
            await asyncio.sleep(self._chance.uniform(0.0, 0.05))

    async def _tend_the_crowd(self) -> None:
        """Register those agents that are not there, once at first and after the store has lost its data."""
        crowd = {f"{self._setting.who}-crowd-{number}" for number in range(CROWD)}
        while not self._stop.is_set():
            with suppress(BackendError):
                missing = sorted(crowd - {agent.id for agent in await self._crowds.list()})
                await asyncio.gather(*(self._crowds.register(_agent(i)) for i in missing), return_exceptions=True)
            with anyio.move_on_after(2 * INTERVAL):
                await self._stop.wait()

    async def _look_on(self) -> None:
        while await self._pauses():
            with suppress(BackendError):
                agents = await self._control.list()
                for agent in self._chance.sample(agents, min(5, len(agents))):
                    with suppress(AgentNotFoundError):
                        await self._control.get(agent.id)

    async def _pauses(self) -> bool:
        """Wait a little; tell whether to go on."""
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
    """Run until SIGTERM, and then until the end of the input."""
    with Journal(setting.journal, setting.who) as journal:
        await Client(setting, journal).run()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Setting)))
