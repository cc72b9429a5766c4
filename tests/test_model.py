"""One registry on each store, driven side by side with a plain dict that says what each must answer."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentReplacedError,
    AgentStatus,
    Beat,
    MemoryRegistry,
    RedisRegistry,
    RegistryError,
    SQLiteRegistry,
)

OLD = datetime(2020, 1, 1, tzinfo=UTC)
FRESH = datetime(2030, 1, 1, tzinfo=UTC)
"""In the model: stamped by the store during this test."""

ids = st.sampled_from(["a", "b", "c*", "d:agent:e", "ü"])
texts = st.sampled_from(["", "n", '"status":"offline"'])
contents: dict[str, st.SearchStrategy[Any]] = {
    "name": texts,
    "capabilities": st.lists(texts, max_size=2).map(tuple),
    "status": st.sampled_from(AgentStatus),
    "current_load": st.sampled_from([0, 1, 2**63 - 1]),
    "max_load": st.sampled_from([0, 5]),
    "metadata": st.dictionaries(texts, texts, max_size=2),
    "unready": texts,
}
agents = st.builds(AgentInfo, id=ids, last_heartbeat=st.sampled_from([None, OLD]), **contents)
changes = st.fixed_dictionaries({}, optional=contents)


class RegistriesAgree(RuleBasedStateMachine):
    redis_url: str
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[str, AgentInfo] = {}
        self.before_offline: dict[str, AgentStatus] = {}
        self.starts: dict[str, list[list[int]]] = {}
        """By agent, its starts in order; for each, its incarnation on each registry."""
        self.stored_start: dict[str, int] = {}
        """By agent that is there, the index of its start."""
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        name = uuid.uuid4().hex
        self.registries: list[AgentRegistry] = [
            MemoryRegistry(),
            SQLiteRegistry(":memory:"),
            SQLiteRegistry(self.folder / f"{name}.db"),
            RedisRegistry(self.redis_url, prefix=f"test-model-{name}"),
        ]
        for registry in self.registries:
            self.run(self.stack.enter_async_context(registry))

    def teardown(self) -> None:
        self.run(self.registries[-1].flush())
        self.run(self.stack.aclose())
        self.runner.close()

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def everywhere(self, call: str, *args: Any, incarnations: list[int] | None = None, **options: Any) -> list[Any]:
        """Make one call on every registry; return what each answered, an error as its type and message."""
        if incarnations is None:
            return [self.run(_answer(getattr(registry, call)(*args, **options))) for registry in self.registries]
        return [
            self.run(_answer(getattr(registry, call)(*args, incarnation=incarnation, **options)))
            for registry, incarnation in zip(self.registries, incarnations, strict=True)
        ]

    def expect(self, answers: list[Any], expected: Any) -> None:
        assert answers == [expected] * len(self.registries)

    def present(self, agent_id: str, value: Any) -> Any:
        """What a call on one agent must answer: the value, or that there is no such agent."""
        return value if agent_id in self.expected else (AgentNotFoundError, f"agent not found: {agent_id}")

    @rule(agent=agents)
    def register(self, agent: AgentInfo) -> None:
        self.expected[agent.id] = replace(agent, last_heartbeat=agent.last_heartbeat or FRESH)
        self.before_offline.pop(agent.id, None)
        self.expect(self.everywhere("register", agent), self.expected[agent.id])
        numbers = [self.run(registry.get(agent.id)).incarnation for registry in self.registries]
        starts = self.starts.setdefault(agent.id, [])
        assert not starts or all(new > old for new, old in zip(numbers, starts[-1], strict=True))
        starts.append(numbers)
        self.stored_start[agent.id] = len(starts) - 1

    @rule(agent_id=ids)
    def heartbeat(self, agent_id: str) -> None:
        self.expect(self.everywhere("heartbeat", agent_id), self.present(agent_id, self._beat(agent_id)))
        self._beaten(agent_id)

    @rule(agent_id=ids, call=st.sampled_from(["heartbeat", "update", "deregister", "register"]), back=st.integers(0, 2))
    def call_of_one_start(self, agent_id: str, call: str, back: int) -> None:
        starts = self.starts.get(agent_id, [])
        own = len(starts) - 1 - back
        if own < 0:
            return
        stored = self.stored_start.get(agent_id, -1) if agent_id in self.expected else -1
        outcome: Any = (AgentNotFoundError, f"agent not found: {agent_id}")
        if stored > own:
            outcome = (AgentReplacedError, str(AgentReplacedError(agent_id, 0)))
        elif call == "register":
            outcome = self.expected[agent_id] = AgentInfo(agent_id, last_heartbeat=FRESH)
            self.before_offline.pop(agent_id, None)
            self.stored_start[agent_id] = own
        elif stored == own and call == "heartbeat":
            outcome = self._beat(agent_id)
            self._beaten(agent_id)
        elif stored == own and call == "update":
            outcome = self.expected[agent_id] = replace(self.expected[agent_id], current_load=own)
        elif stored == own:
            outcome = None
            del self.expected[agent_id]
        argument = AgentInfo(agent_id) if call == "register" else agent_id
        changes = {"current_load": own} if call == "update" else {}
        self.expect(self.everywhere(call, argument, incarnations=starts[own], **changes), outcome)

    @rule(some=st.lists(ids))
    def heartbeat_many(self, some: list[str]) -> None:
        self.expect(self.everywhere("heartbeat_many", some), set(some) - set(self.expected))
        for agent_id in some:
            self._beaten(agent_id)

    @rule(agent_id=ids)
    def get(self, agent_id: str) -> None:
        self.expect(self.everywhere("get", agent_id), self.present(agent_id, self.expected.get(agent_id)))

    @rule(agent_id=ids, change=changes)
    def update(self, agent_id: str, change: dict[str, Any]) -> None:
        if agent_id in self.expected:
            self.expected[agent_id] = replace(self.expected[agent_id], **change)
            if "status" in change:
                self.before_offline.pop(agent_id, None)
        answers = self.everywhere("update", agent_id, **change)
        self.expect(answers, self.present(agent_id, self.expected.get(agent_id)))

    @rule(agent_id=ids)
    def deregister(self, agent_id: str) -> None:
        self.expect(self.everywhere("deregister", agent_id), self.present(agent_id, None))
        self.expected.pop(agent_id, None)

    @rule()
    def reap(self) -> None:
        stale = {
            agent_id
            for agent_id, agent in self.expected.items()
            if agent.last_heartbeat == OLD and agent.status is not AgentStatus.OFFLINE
        }
        for agent_id in stale:
            self.before_offline[agent_id] = self.expected[agent_id].status
            self.expected[agent_id] = replace(self.expected[agent_id], status=AgentStatus.OFFLINE)
        self.expect([sorted(answer) for answer in self.everywhere("reap", 3600)], sorted(stale))

    @rule()
    def flush(self) -> None:
        self.expect(self.everywhere("flush"), len(self.expected))
        self.expected.clear()

    @invariant()
    def everyone_lists_the_same(self) -> None:
        listed = [sorted(answer, key=lambda agent: agent.id) for answer in self.everywhere("list")]
        self.expect(listed, sorted(self.expected.values(), key=lambda agent: agent.id))

    def _beat(self, agent_id: str) -> Beat:
        agent = self.expected.get(agent_id)
        return Beat(was_offline=agent is not None and agent.status is AgentStatus.OFFLINE)

    def _beaten(self, agent_id: str) -> None:
        agent = self.expected.get(agent_id)
        if agent is not None:
            before = self.before_offline.pop(agent_id, AgentStatus.AVAILABLE)
            status = before if agent.status is AgentStatus.OFFLINE else agent.status
            self.expected[agent_id] = replace(agent, last_heartbeat=FRESH, status=status)


async def _answer(call: Any) -> Any:
    try:
        answer = await call
    except RegistryError as error:
        return type(error), str(error)
    if isinstance(answer, list):
        return [_normalised(each) for each in answer]
    return _normalised(answer)


def _normalised(answer: Any) -> Any:
    """Make answers of several stores comparable: replace a stamp of just now by FRESH, and drop the incarnation."""
    if isinstance(answer, AgentInfo) and answer.last_heartbeat is not None:
        answer = replace(answer, incarnation=0)
        if abs(datetime.now(UTC) - answer.last_heartbeat) < timedelta(minutes=5):
            return replace(answer, last_heartbeat=FRESH)
    return answer


@pytest.mark.timeout(300)
def test_every_store_answers_as_the_model_does(redis_url: str, tmp_path: Path) -> None:
    machine = type("Machine", (RegistriesAgree,), {"redis_url": redis_url, "folder": tmp_path})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
