"""The store under test: how the contract makes registries on it, moves its clock and corrupts records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

import pytest

from agentic.registry import AgentRegistry
from agentic.testing.clock import FakeClock

Ability = Literal["clock", "clock during a sweep", "corruption", "foreign writes", "sharing"]


class StoreUnderTest(ABC):
    """One store, initially empty, on which any number of registries may be made.

    Define `make`, `corrupt` unless the store lacks `"corruption"`, and `rewrite` unless it lacks `"foreign writes"`. If
    the backend takes no `clock`, also define the methods that move the store's clock. The abilities below are optional:
    list the missing ones in `lacks`, and their tests are skipped with your reason.

    - `"clock"`: tests can move the store's clock with `pass_time`, `step_back` and `stop_clock`.
    - `"clock during a sweep"`: tests can do so between two pages of one sweep.
    - `"corruption"`: `corrupt` can corrupt a stored record.
    - `"foreign writes"`: other programs can write to the store; `rewrite` does what they may do.
    - `"sharing"`: registries that are open at the same time have the same agents, and agents outlive their registry.

    Attributes:
        lacks: Missing abilities, each with the reason.
        drops_expired: Whether the store itself removes an agent when its `ttl` is over, so that no sweep reports it.
        clock: The clock to pass to the backend in `make`; moved by `pass_time`, `step_back` and `stop_clock`.
    """

    lacks: Mapping[Ability, str] = MappingProxyType({})
    drops_expired: bool = False

    def __init__(self) -> None:
        self.clock = FakeClock()

    @abstractmethod
    def make(self, **options: Any) -> AgentRegistry:
        """Return an unopened registry on the store.

        Args:
            options: Any of `ttl`, `timeout`, `stale_after` and `wait`, as in `AgentRegistry`. Without `ttl`, agents
                must stay for at least a minute.
        """

    async def corrupt(self, agent_id: str) -> None:
        """Corrupt the stored record of an agent, so that the store cannot decode it."""
        raise NotImplementedError('define corrupt, or say in lacks["corruption"] why it cannot be done')

    async def rewrite(self, agent_id: str, incarnation: object = None) -> None:
        """Write the record of an agent as a program may that does not know all fields.

        Remove `unready` and what a sweep has kept. Replace the incarnation by the given value, which may be of any JSON
        type, or remove it if that is None.
        """
        raise NotImplementedError('define rewrite, or say in lacks["foreign writes"] why it cannot be done')

    async def pass_time(self, seconds: float) -> None:
        """Let seconds pass on the store's clock."""
        self.clock.advance(seconds)

    async def step_back(self, seconds: float) -> None:
        """Set the store's clock back by seconds."""
        self.clock.advance(-seconds)

    def stop_clock(self, registry: AgentRegistry, now: datetime) -> None:
        """Make sweeps of this registry use an instant as the store's time."""
        self.clock.stop(now)

    def connections(self) -> list[int]:
        """Return the number of connections of each server; empty for a store without servers."""
        return []

    def require(self, ability: Ability) -> None:
        """Skip the calling test if the store lacks an ability."""
        if ability in self.lacks:
            pytest.skip(f"{type(self).__name__} lacks {ability}: {self.lacks[ability]}")
