"""A store as the contract sees it: how to make a registry on it, move its clock and damage a record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

import pytest

from agentic.registry import AgentRegistry
from agentic.testing.clock import FakeClock

Ability = Literal["clock", "clock during a sweep", "corruption", "sharing"]


class StoreUnderTest(ABC):
    """One store, empty at first, on which any number of registries may be made.

    Only `make` must be defined where the backend takes a `clock`. The abilities below are optional: name those that
    the store does not have in `lacks`, and their tests are skipped with the reason that you give.

    - `"clock"`: tests can move the store's clock, by `pass_time`, `step_back` and `stop_clock`.
    - `"clock during a sweep"`: they can do so between two pages of one sweep.
    - `"corruption"`: `corrupt` can damage a stored record.
    - `"sharing"`: registries that are open at the same time have the same agents, and agents outlive their registry.

    Attributes:
        lacks: Abilities that the store does not have, each with the reason.
        drops_expired: The store itself removes an agent when its `ttl` is over, so that no sweep reports it.
        clock: For `make` to pass on; moved by `pass_time`, `step_back` and `stop_clock`.
    """

    lacks: Mapping[Ability, str] = MappingProxyType({})
    drops_expired: bool = False

    def __init__(self) -> None:
        self.clock = FakeClock()

    @abstractmethod
    def make(self, **options: Any) -> AgentRegistry:
        """Return a registry on the store that is not open yet.

        Args:
            options: Any of `ttl`, `timeout`, `stale_after` and `wait`, each as of `AgentRegistry`. Without `ttl`,
                agents must stay for a minute or longer.
        """

    async def corrupt(self, agent_id: str) -> None:
        """Damage the stored record of an agent, so that the store cannot read it any more."""
        raise NotImplementedError('define corrupt, or say in lacks["corruption"] why it cannot be done')

    async def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass in the store."""
        self.clock.advance(seconds)

    async def step_back(self, seconds: float) -> None:
        """Set the store's clock back by so many seconds."""
        self.clock.advance(-seconds)

    def stop_clock(self, registry: AgentRegistry, now: datetime) -> None:
        """Let sweeps of this registry see an instant as the store's time."""
        self.clock.stop(now)

    def connections(self) -> list[int]:
        """Return how many connections each server of the store has; empty for a store without servers."""
        return []

    def require(self, ability: Ability) -> None:
        """Skip the test that calls this where the store lacks an ability."""
        if ability in self.lacks:
            pytest.skip(f"{type(self).__name__} lacks {ability}: {self.lacks[ability]}")
