"""A Litestar service that is an agent itself, shows the fleet, and takes silent agents offline.

    pip install agentic-registry "litestar[standard]"
    AGENTIC_URL=sqlite:///fleet.db litestar --app litestar_app:app run

The store comes from the AGENTIC_* variables.
"""

from __future__ import annotations

from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from agentic import AgentInfo, AgentRegistry, RegistryError
from agentic.asgi import lifespan


def the_registry(state: State) -> AgentRegistry:
    """Return the registry that the lifespan opened."""
    registry: AgentRegistry = state.registry
    return registry


def answer_error(_request: Request[object, object, State], error: RegistryError) -> Response[dict[str, str]]:
    """Answer with the error's code: 400, 404, 500 where an operator must act, 503 where trying again later helps."""
    return Response({"detail": str(error)}, status_code=error.code)


@get("/agents")
async def list_agents(registry: NamedDependency[AgentRegistry]) -> list[AgentInfo]:
    """List the fleet."""
    return await registry.list()


@get("/agents/{agent_id:str}")
async def get_agent(registry: NamedDependency[AgentRegistry], agent_id: FromPath[str]) -> AgentInfo:
    """Show one agent."""
    return await registry.get(agent_id)


app = Litestar(
    [list_agents, get_agent],
    # Each worker process is an agent of its own: gateway-HOST-PID.
    lifespan=[lifespan(agent=AgentInfo("gateway", capabilities=("http",)), wait=30)],
    dependencies={"registry": Provide(the_registry, sync_to_thread=False)},
    exception_handlers={RegistryError: answer_error},
)
