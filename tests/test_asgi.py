"""The lifespan for web applications, in FastAPI and Starlette."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.applications import Starlette

from agentic import AgentInfo, AgentRegistry, ConfigurationError, InvalidAgentError, RegistryError, open_registry
from agentic.asgi import lifespan
from agentic.testing import wait_until
from tests.support.stores import LONG_AGO


def test_fastapi_answers_with_the_fleet_and_this_process_is_an_agent_in_it(tmp_path: Path) -> None:
    app = FastAPI(lifespan=lifespan(tmp_path / "r.db", agent=AgentInfo("gateway", capabilities=["http"]), timeout=20))

    @app.get("/agents")
    async def agents(request: Request) -> list[AgentInfo]:
        registry: AgentRegistry = request.app.state.registry
        return await registry.list()

    with TestClient(app) as client:
        (found,) = client.get("/agents").json()
        assert found["id"] == f"gateway-{socket.gethostname()}-{os.getpid()}"
        assert found["capabilities"] == ["http"]
        assert app.state.agent_session.healthy
        schema = client.get("/openapi.json").json()["paths"]["/agents"]["get"]["responses"]["200"]["content"]
        assert set(schema["application/json"]["schema"]["items"]["properties"]) == set(AgentInfo.__struct_fields__)
    with TestClient(app) as client:  # After a restart, the agent of the first run is gone.
        assert len(client.get("/agents").json()) == 1


def running(app: Any, *arguments: Any, **options: Any) -> AbstractAsyncContextManager[None]:
    return lifespan(*arguments, **options)(app)


async def test_the_reaper_runs_by_default(tmp_path: Path) -> None:
    app = Starlette()
    for reaper, status in ((False, "available"), (True, "offline")):
        async with running(app, tmp_path / "r.db", reaper=reaper):
            registry: AgentRegistry = app.state.registry
            await registry.register(AgentInfo("silent", last_heartbeat=LONG_AGO))

            async def is_as_expected(registry: AgentRegistry = registry, status: str = status) -> bool:
                return (await registry.get("silent")).status == status

            await wait_until(is_as_expected, f"it is {status}")
    async with open_registry(tmp_path / "r.db") as registry:
        assert [agent.id for agent in await registry.list()] == ["silent"]


async def test_an_error_of_a_background_task_interrupts_no_request_and_is_raised_at_the_end(tmp_path: Path) -> None:
    app = SimpleNamespace(state=SimpleNamespace())
    with pytest.raises(RegistryError, match="the background task of the session .* was cancelled by other code"):
        async with running(app, tmp_path / "r.db", agent=AgentInfo("gateway"), reaper=False):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            assert len(await app.state.registry.list()) == 1
    with pytest.raises(RegistryError, match="not open"):
        await app.state.registry.list()


def test_invalid_arguments_are_refused_before_the_application_starts() -> None:
    with pytest.raises(InvalidAgentError, match="^agent ID is required$"):
        lifespan("memory://", agent=AgentInfo(""))
    with pytest.raises(ConfigurationError, match="^reaper: must be True or False"):
        lifespan("memory://", reaper=5)  # type: ignore[arg-type]
