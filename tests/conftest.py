"""The stores under test, all of them real."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings

from agentic import AgentRegistry
from agentic.testing import RedisServer, StoreUnderTest
from tests.support.redis_fleet import RedisCluster, SentinelTrio
from tests.support.stores import ALL_STORES, MemoryStore, RedisStore, SQLiteMemoryStore, SQLiteStore

settings.register_profile(
    "agentic", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("agentic")


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests off the user's own registry and variables."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in [name for name in os.environ if name.startswith("AGENTIC_") and not name.startswith("AGENTIC_TEST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server that the whole run shares."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """A cluster that the whole run shares."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sentinel_trio() -> Iterator[SentinelTrio]:
    """Sentinels with a primary and a replica that the whole run shares."""
    with SentinelTrio() as trio:
        yield trio


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A server of the test's own, to be stopped and paused."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis_cluster() -> Iterator[RedisCluster]:
    """A cluster of the test's own, to be changed."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_store(redis_url: str) -> Iterator[RedisStore]:
    with closing(RedisStore(redis_url)) as store:
        yield store


@pytest.fixture
def sentinel_store(sentinel_trio: SentinelTrio) -> Iterator[RedisStore]:
    with closing(RedisStore(sentinel_trio.url, redis.Redis(port=sentinel_trio.primary_port()))) as store:
        yield store


@pytest.fixture
def cluster_store(redis_cluster: RedisCluster) -> Iterator[RedisStore]:
    client = redis.RedisCluster(host="127.0.0.1", port=redis_cluster.servers[0].port)
    with closing(RedisStore(redis_cluster.url, client)) as store:
        yield store


@pytest.fixture(params=ALL_STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    """Each store in turn."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite-memory":
            return SQLiteMemoryStore()
        case "sqlite-file":
            return SQLiteStore(tmp_path / "registry.db")
        case server:
            made: RedisStore = request.getfixturevalue(f"{server.removeprefix('redis-')}_store")
            return made


@pytest.fixture
async def registry(store: StoreUnderTest) -> AsyncIterator[AgentRegistry]:
    """An open registry on each store in turn."""
    async with store.make() as opened:
        yield opened
