"""A FastAPI service that is an agent itself, shows the fleet, and takes silent agents offline.

    pip install agentic-registry fastapi uvicorn
    AGENTIC_URL=sqlite:///fleet.db uvicorn --workers 2 fastapi_app:app

The store comes from the AGENTIC_* variables; with two workers it must be SQLite or Redis, which both of them see.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from agentic import AgentInfo, AgentRegistry, RegistryError
from agentic.asgi import lifespan

# Each worker process is an agent of its own: gateway-HOST-PID.
app = FastAPI(lifespan=lifespan(agent=AgentInfo("gateway", capabilities=("http",)), wait=30))


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
async def list_agents(registry: Registry) -> list[AgentInfo]:
    """List the fleet."""
    return await registry.list()


@app.get("/agents/{agent_id}")
async def get_agent(agent_id: str, registry: Registry) -> AgentInfo:
    """Show one agent."""
    return await registry.get(agent_id)


@app.post("/agents/{agent_id}/heartbeat", status_code=204)
async def heartbeat(agent_id: str, registry: Registry) -> None:
    """Take the heartbeat of an agent that has no connection to the store."""
    await registry.heartbeat(agent_id)


@app.get("/health")
async def health(request: Request) -> JSONResponse:
    """Say whether the store acknowledged this process's latest heartbeat, and why it takes no work, if it does not."""
    session = request.app.state.agent_session
    is_ready = session.healthy and session.agent.ready
    return JSONResponse({"healthy": session.healthy, "unready": session.agent.unready}, 200 if is_ready else 503)
