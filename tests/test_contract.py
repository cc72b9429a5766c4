"""The contract, kept by every store of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic.testing import RegistryContract, StoreUnderTest
from agentic.testing.contract.calls import Calls
from agentic.testing.contract.drains import Drains
from agentic.testing.contract.lifecycle import Lifecycle
from agentic.testing.contract.reaping import Reaping
from agentic.testing.contract.sharing import Sharing
from agentic.testing.contract.starts import Starts
from tests.support.stores import MemoryStore, RedisStore, SQLiteMemoryStore, SQLiteStore


class TestMemory(RegistryContract):
    @pytest.fixture
    def store(self) -> StoreUnderTest:
        return MemoryStore()


class TestSQLiteInMemory(Calls, Starts, Drains, Reaping):
    """The code is that of a SQLite file, but on one connection."""

    @pytest.fixture
    def store(self) -> StoreUnderTest:
        return SQLiteMemoryStore()


class TestSQLite(RegistryContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> StoreUnderTest:
        return SQLiteStore(tmp_path / "registry.db")


class TestRedis(RegistryContract):
    @pytest.fixture
    def store(self, redis_store: RedisStore) -> StoreUnderTest:
        return redis_store


class TestRedisSentinel(Calls, Lifecycle, Sharing):
    """The code is that of a single server, except for finding it."""

    @pytest.fixture
    def store(self, sentinel_store: RedisStore) -> StoreUnderTest:
        return sentinel_store


class TestRedisCluster(RegistryContract):
    @pytest.fixture
    def store(self, cluster_store: RedisStore) -> StoreUnderTest:
        return cluster_store
