"""The stores under test, all of them real."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings

from agentic import AgentRegistry
from agentic.testing.servers import RedisServer
from tests.support.redis_fleet import RedisCluster, SentinelTrio
from tests.support.stores import ALL_STORES, MemoryStore, RedisStore, SQLiteStore, Store

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
    store = RedisStore(redis_url)
    yield store
    store.close()


@pytest.fixture(params=ALL_STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each store in turn. A new backend is one more branch here."""
    match request.param:
        case "memory":
            made: Store = MemoryStore()
        case "sqlite-memory":
            made = SQLiteStore(None)
        case "sqlite-file":
            made = SQLiteStore(tmp_path / "registry.db")
        case "redis-cluster":
            cluster: RedisCluster = request.getfixturevalue("redis_cluster")
            made = RedisStore(cluster.url, redis.RedisCluster(host="127.0.0.1", port=cluster.servers[0].port))
        case "redis-sentinel":
            trio: SentinelTrio = request.getfixturevalue("sentinel_trio")
            made = RedisStore(trio.url, redis.Redis(port=trio.primary_port()))
        case _:
            made = RedisStore(request.getfixturevalue("redis_url"))
    yield made
    made.close()


@pytest.fixture
async def registry(store: Store) -> AsyncIterator[AgentRegistry]:
    """An open registry on each store in turn."""
    async with store.make() as opened:
        yield opened
