"""Redis over TLS: with the right certificate it works, everything else is refused with a hint within the connect timeout."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from agentic import AgentInfo, BackendRejectedError, BackendUnavailableError, RedisRegistry, open_registry
from tests.proxy import Proxy

CONNECT = 1.5  # three times that is less than the 5 s that any connecting may take


def served_by(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


async def test_the_right_certificate_works(redis_url: str, authority: trustme.CA, tmp_path: Path) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "127.0.0.1")) as proxy:
        async with open_registry(f"{proxy.url}?ca={tmp_path / 'ca.pem'}&prefix=tls") as registry:
            await registry.register(AgentInfo("a"))
            assert [agent.id for agent in await registry.list()] == ["a"]
            assert await registry.flush() == 1


async def test_a_certificate_nobody_signed_is_refused(redis_url: str, authority: trustme.CA) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "127.0.0.1")) as proxy:
        with pytest.raises(BackendRejectedError, match="certificate is not trusted"):
            await open_in_time(proxy.url)


async def test_another_hosts_certificate_is_refused(redis_url: str, authority: trustme.CA, tmp_path: Path) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "elsewhere.example")) as proxy:
        with pytest.raises(BackendRejectedError, match="another host's"):
            await open_in_time(f"{proxy.url}?ca={tmp_path / 'ca.pem'}")


async def test_tls_to_a_plain_port_is_refused_with_a_hint(redis_url: str) -> None:
    with pytest.raises((BackendRejectedError, BackendUnavailableError), match="redis://"):
        await open_in_time(redis_url.replace("redis://", "rediss://"))


async def test_plain_to_a_tls_port_is_refused_with_a_hint(redis_url: str, authority: trustme.CA) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "127.0.0.1")) as proxy:
        with pytest.raises(BackendUnavailableError, match="rediss://"):
            await open_in_time(proxy.url.replace("rediss://", "redis://"))


async def open_in_time(url: str) -> None:
    """Open a registry; three times its timeout is the time of a call that hangs, whatever the machine."""
    async with asyncio.timeout(3 * CONNECT):
        await RedisRegistry(url, timeout=CONNECT).open()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])
