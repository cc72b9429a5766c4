"""What somebody reads who has made a natural mistake: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from agentic import (
    AgentInfo,
    BackendUnavailableError,
    ConfigurationError,
    InvalidAgentError,
    MemoryRegistry,
    Reaper,
    RegistryClosedError,
    RegistryOpenError,
    open_registry,
)
from agentic.testing.servers import free_port

SCHEMES = (
    "expected a URL such as memory://, sqlite:///file.db or redis://localhost:6379/0; installed are memory, sqlite, "
)


async def use(source: Any, **options: Any) -> None:
    async with open_registry(source, **options):
        pass


async def with_memory(call: Callable[[MemoryRegistry], Awaitable[object]]) -> None:
    async with MemoryRegistry() as registry:
        await call(registry)


async def enter_twice() -> None:
    registry = await MemoryRegistry()
    try:
        async with registry:
            pass
    finally:
        await registry.aclose()


async def reaper_of_a_closed_registry() -> None:
    async with Reaper(MemoryRegistry()):
        raise AssertionError("the body is not reached")


async def session_of_a_closed_registry() -> None:
    async with MemoryRegistry().session(AgentInfo("a")):
        raise AssertionError("the body is not reached")


MISTAKES: dict[str, tuple[Callable[[], Awaitable[object]], type[Exception], str]] = {
    "another store's scheme": (lambda: use("postgres://h/db"), ConfigurationError, SCHEMES),
    "no scheme": (lambda: use("localhost:6379"), ConfigurationError, SCHEMES),
    "an unknown backend": (
        lambda: use({"backend": "postgres"}),
        ConfigurationError,
        "unsupported registry backend: " + SCHEMES,
    ),
    "an unknown keyword": (
        lambda: use("redis://h", prefx="p"),
        ConfigurationError,
        "the redis store has no such option; did you mean 'prefix'?",
    ),
    "an option of another store": (
        lambda: use("memory://", prefix="p"),
        ConfigurationError,
        "the memory store has no such option: expected ttl, timeout, stale_after, wait",
    ),
    "a raw @ in a password": (lambda: use("redis://:p@ss@h"), ConfigurationError, "must be percent-encoded"),
    "an id that is no text": (
        lambda: with_memory(lambda registry: registry.register(AgentInfo(UUID(int=1)))),  # type: ignore[arg-type]
        InvalidAgentError,
        "id: must be a string, got UUID",
    ),
    "an agent in place of its id": (
        lambda: with_memory(lambda registry: registry.heartbeat(AgentInfo("a"))),  # type: ignore[arg-type]
        InvalidAgentError,
        "id: must be a string, got AgentInfo",
    ),
    "a set of capabilities": (
        lambda: with_memory(lambda registry: registry.register(AgentInfo("a", capabilities={"go"}))),  # type: ignore[arg-type]
        InvalidAgentError,
        "capabilities: must be a tuple or list of strings, got set",
    ),
    "a misspelt status": (
        lambda: with_memory(lambda registry: registry.update("a", status="availble")),  # type: ignore[arg-type]
        InvalidAgentError,
        "status: must be one of available, busy, offline, unknown, got 'availble'",
    ),
    "a call before opening": (
        lambda: MemoryRegistry().list(),
        RegistryClosedError,
        "the registry is not open: use it inside 'async with'",
    ),
    "a reaper before opening": (reaper_of_a_closed_registry, RegistryClosedError, "use it inside 'async with'"),
    "a session before opening": (session_of_a_closed_registry, RegistryClosedError, "use it inside 'async with'"),
    "a registry entered twice": (enter_twice, RegistryOpenError, "the registry is open already, or not yet closed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_answered_with_what_is_wrong_and_what_to_do(mistake: str) -> None:
    make, kind, text = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        await make()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


REFUSED = {
    "redis": ("redis://127.0.0.1:{port}", "is a server running there? `agentic doctor --url URL` examines it"),
    "cluster": ("redis+cluster://127.0.0.1:{port}", "is a server running there?"),
    "sentinel": ("redis+sentinel://127.0.0.1:{port}/primary", "is a server running there?"),
    "socket": ("unix:///tmp/no-such-{port}.sock", "is a server running there?"),
    "unknown host": ("redis://no-such-host.invalid", "check the host name"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_store_that_is_not_there_is_told_in_one_line_and_a_short_traceback(name: str) -> None:
    url, text = REFUSED[name]
    with pytest.raises(BackendUnavailableError) as caught:
        await use(url.format(port=free_port()))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    driver = "".join(traceback.format_exception(caught.value)).partition("Traceback (most recent call last)")[0]
    assert 3 <= len(driver.splitlines()) <= 12
    assert "File" not in driver


def test_trio_is_told_to_be_unsupported() -> None:
    with pytest.raises(RegistryClosedError, match="agentic works with asyncio, not with trio"):
        trio.run(MemoryRegistry().open)


async def test_another_event_loop_is_told_what_to_do() -> None:
    async with MemoryRegistry() as registry:
        with pytest.raises(RegistryClosedError, match="was opened in another event loop: open one in each"):
            await asyncio.to_thread(asyncio.run, registry.list())


def test_the_command_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('No module named typer', name='typer')")
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from agentic.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == 'error: the command line needs an extra: pip install "agentic-registry[cli]"\n'
