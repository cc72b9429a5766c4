"""A FastAPI service that is an agent itself, shows the fleet, and takes silent agents offline.

Run it with any ASGI server; the store comes from the AGENTIC_* variables, in memory when none is set.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from agentic import AgentInfo, AgentRegistry, Reaper, RegistryError, open_registry


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the registry open, this service registered, and the fleet swept, for as long as the application runs."""
    async with (
        open_registry() as registry,
        Reaper(registry),
        registry.session(AgentInfo("gateway", name="the gateway", capabilities=("http",))),
    ):
        app.state.registry = registry
        yield


app = FastAPI(lifespan=lifespan)


def the_registry(request: Request) -> AgentRegistry:
    """Return the registry that the lifespan opened."""
    registry: AgentRegistry = request.app.state.registry
    return registry


Registry = Annotated[AgentRegistry, Depends(the_registry)]


@app.exception_handler(RegistryError)
async def answer_error(_request: Request, error: RegistryError) -> JSONResponse:
    """Answer with the error's code: 400, 404, 500 where an operator must act, 503 where trying again later helps."""
    return JSONResponse({"detail": str(error)}, error.code)


@app.get("/agents")
async def list_agents(registry: Registry) -> list[dict[str, Any]]:
    """List the fleet."""
    return [msgspec.to_builtins(agent) for agent in await registry.list()]


@app.get("/agents/{agent_id}")
async def get_agent(agent_id: str, registry: Registry) -> dict[str, Any]:
    """Show one agent."""
    agent: dict[str, Any] = msgspec.to_builtins(await registry.get(agent_id))
    return agent


@app.post("/agents/{agent_id}/heartbeat", status_code=204)
async def heartbeat(agent_id: str, registry: Registry) -> None:
    """Take the heartbeat of an agent that has no connection to the store."""
    await registry.heartbeat(agent_id)
