"""The contract, kept by every store of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic.testing import RegistryContract, StoreUnderTest
from tests.support.stores import MemoryStore, RedisStore, SQLiteMemoryStore, SQLiteStore


class TestMemory(RegistryContract):
    @pytest.fixture
    def store(self) -> StoreUnderTest:
        return MemoryStore()


class TestSQLiteInMemory(RegistryContract):
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


class TestRedisSentinel(RegistryContract):
    @pytest.fixture
    def store(self, sentinel_store: RedisStore) -> StoreUnderTest:
        return sentinel_store


class TestRedisCluster(RegistryContract):
    @pytest.fixture
    def store(self, cluster_store: RedisStore) -> StoreUnderTest:
        return cluster_store
