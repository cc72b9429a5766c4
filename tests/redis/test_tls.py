"""Redis over TLS: the right certificate works, all else is refused with a hint within the connect timeout."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from redis.exceptions import RedisError

from agentic import (
    AgentInfo,
    BackendError,
    BackendRejectedError,
    BackendUnavailableError,
    RedisRegistry,
    open_registry,
)
from agentic.backends.redis.client import make_client
from tests.support.proxy import Proxy
from tests.support.redis_fleet import SERVICE, SentinelTrio

CONNECT = 1.5  # three times this is below the 5 s limit of any connect


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


async def test_closing_does_not_wait_for_the_servers_tls_close(
    redis_url: str, authority: trustme.CA, tmp_path: Path
) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "127.0.0.1")) as proxy:
        registry = RedisRegistry(f"{proxy.url}?ca={tmp_path / 'ca.pem'}")
        await registry.open()
        proxy.stop_reading()
        async with asyncio.timeout(5):
            await registry.aclose()


async def test_an_untrusted_certificate_is_refused(redis_url: str, authority: trustme.CA) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "127.0.0.1")) as proxy:
        with pytest.raises(BackendRejectedError, match="certificate is not trusted"):
            await open_in_time(proxy.url)


async def test_another_hosts_certificate_is_refused(redis_url: str, authority: trustme.CA, tmp_path: Path) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "elsewhere.example")) as proxy:
        with pytest.raises(BackendRejectedError, match="is for another host"):
            await open_in_time(f"{proxy.url}?ca={tmp_path / 'ca.pem'}")


async def test_a_tls_connection_to_a_plain_port_is_refused_with_a_hint(redis_url: str) -> None:
    with pytest.raises((BackendRejectedError, BackendUnavailableError), match="redis://"):
        await open_in_time(redis_url.replace("redis://", "rediss://"))


async def test_a_plain_connection_to_a_tls_port_is_refused_with_a_hint(redis_url: str, authority: trustme.CA) -> None:
    async with Proxy(port_of(redis_url), served_by(authority, "127.0.0.1")) as proxy:
        with pytest.raises(BackendUnavailableError, match="rediss://"):
            await open_in_time(proxy.url.replace("rediss://", "redis://"))


@pytest.fixture
def mutual(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    """The context of a server that requires a client certificate; writes the certificates to `tmp_path`."""
    context = served_by(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    issued = authority.issue_cert("agent@fleet")
    issued.private_key_pem.write_to_path(tmp_path / "client.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    return context


@pytest.mark.parametrize("files", [{"cert": "client.pem", "key": "client.key"}, {"cert": "both.pem"}])
async def test_a_client_certificate_is_sent_to_a_server_that_requires_it(
    redis_url: str, mutual: ssl.SSLContext, tmp_path: Path, files: dict[str, str]
) -> None:
    async with Proxy(port_of(redis_url), mutual) as proxy:
        base = f"{proxy.url}?ca={tmp_path / 'ca.pem'}&prefix=mutual"
        given = "".join(f"&{option}={tmp_path / name}" for option, name in files.items())
        async with open_registry(base + given) as registry:
            assert await registry.list() == []
        with pytest.raises(BackendError, match="client certificate: see cert and key"):
            await open_registry(base).open()


def encrypted(key: bytes) -> bytes:
    """A key with a password, for which OpenSSL would prompt on the terminal."""
    loaded = serialization.load_pem_private_key(key, None)
    secret = serialization.BestAvailableEncryption(b"secret")
    return loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)


async def test_a_wrong_file_is_named_with_its_option(mutual: ssl.SSLContext, tmp_path: Path) -> None:
    (tmp_path / "garbage.pem").write_text("no certificate\n")
    (tmp_path / "encrypted.key").write_bytes(encrypted((tmp_path / "client.key").read_bytes()))
    trustme.CA().issue_cert("another").private_key_pem.write_to_path(tmp_path / "another.key")
    good = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    for option, name, why in (
        ("ca", "missing.pem", "cannot be read: No such file"),
        ("cert", "missing.pem", "cannot be read: No such file"),
        ("key", "missing.key", "cannot be read: No such file"),
        ("ca", "", "cannot be read: Is a directory"),
        ("ca", "garbage.pem", "contains no certificate"),
        ("ca", "client.key", "contains no certificate"),
        ("cert", "client.key", "contains no certificate"),
        ("key", "client.pem", "contains no unencrypted key for that certificate"),
        ("key", "another.key", "contains no unencrypted key for that certificate"),
        ("key", "encrypted.key", "contains no unencrypted key for that certificate"),
    ):
        files = {each: str(tmp_path / file) for each, file in (good | {option: name}).items()}
        with pytest.raises(BackendRejectedError, match=why) as caught:
            await RedisRegistry("rediss://127.0.0.1:1", **files).open()  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"{option}: the file {str(tmp_path / name)!r}")


async def test_sentinels_use_tls_by_default_if_the_servers_do(
    sentinel_trio: SentinelTrio, authority: trustme.CA, tmp_path: Path
) -> None:
    sentinel = sentinel_trio.sentinels[0][1]
    trusted = {"ssl_ca_certs": str(tmp_path / "ca.pem")}

    async def primary_named(port: int, **options: Any) -> int:
        place = {"sentinels": [("127.0.0.1", port)], "service": SERVICE, "db": 0, "max_connections": 1}
        client: Any = make_client(place | trusted | options, CONNECT)
        try:
            _, found = await client.connection_pool.get_master_address()
            return int(found)
        finally:
            await client.aclose()

    async with Proxy(sentinel, served_by(authority, "127.0.0.1")) as proxy:
        primary = sentinel_trio.primary_port()
        assert await primary_named(proxy.port, ssl=True) == primary
        assert await primary_named(proxy.port, ssl=False, sentinel_tls=True) == primary
        assert await primary_named(sentinel, ssl=True, sentinel_tls=False) == primary
        assert await primary_named(sentinel, ssl=False) == primary
        with pytest.raises(RedisError):
            await primary_named(sentinel, ssl=True)


async def open_in_time(url: str) -> None:
    """Open a registry; count it as hung after three times its timeout, also on a slow machine."""
    async with asyncio.timeout(3 * CONNECT):
        await RedisRegistry(url, timeout=CONNECT).open()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])
