"""Shared by all parts of the contract: a store, and an open registry on it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from agentic.agent import AgentInfo
from agentic.registry import AgentRegistry
from agentic.testing.store import StoreUnderTest

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def fill(registry: AgentRegistry, count: int, **fields: Any) -> set[str]:
    """Register agents concurrently; return their ids."""
    ids = {f"agent-{number:05}" for number in range(count)}
    await asyncio.gather(*(registry.register(AgentInfo(agent_id, **fields)) for agent_id in ids))
    return ids


class Contract:
    """Tests of a store that a subclass provides."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Mark the async tests for pytest-asyncio, which requires it in strict mode."""
        super().__init_subclass__(**options)
        for name, each in vars(cls).items():
            if name.startswith("test_") and inspect.iscoroutinefunction(each):
                pytest.mark.asyncio(loop_scope="function")(each)

    @pytest.fixture
    def store(self) -> StoreUnderTest:
        """Return the store under test, empty; subclasses must define this fixture."""
        raise NotImplementedError("define the fixture 'store', which returns a StoreUnderTest")

    @pytest_asyncio.fixture(loop_scope="function")
    async def registry(self, store: StoreUnderTest) -> AsyncIterator[AgentRegistry]:
        """An open registry on the store."""
        async with store.make() as opened:
            yield opened

    @pytest.fixture
    def clocked_store(self, store: StoreUnderTest) -> StoreUnderTest:
        """The store, if tests can move its clock."""
        store.require("clock")
        return store
