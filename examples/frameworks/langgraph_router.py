"""A LangGraph graph that gives each job to a live worker: the registry says who can do it and who is free.

Run it as it stands: two workers, three jobs, no model and no network. The nodes are plain functions; put your models in
their place.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from agentic import AgentInfo, AgentRegistry, AgentSession, AgentStatus, open_registry


class State(TypedDict, total=False):
    """What the graph hands from node to node."""

    skill: str
    job: str
    worker: str | None
    answer: str


async def choose(registry: AgentRegistry, skill: str) -> str | None:
    """Return the id of the least loaded live agent that has a skill and a free slot; None where there is none."""
    able = [
        agent
        for agent in await registry.list()
        if skill in agent.capabilities
        and agent.status is not AgentStatus.OFFLINE
        and agent.current_load < agent.max_load
    ]
    return min(able, key=lambda agent: agent.current_load).id if able else None


def build(registry: AgentRegistry, workers: dict[str | None, AgentSession]) -> Any:
    """Return the compiled graph: choose a worker, and let it work."""

    async def route(state: State) -> State:
        return {"worker": await choose(registry, state["skill"])}

    async def work(state: State) -> State:
        worker = state["worker"]
        session = workers[worker]
        await session.update(status=AgentStatus.BUSY, current_load=1)
        try:
            await asyncio.sleep(0.01)  # Call your model here.
            return {"answer": f"{worker} did {state['job']}"}
        finally:
            await session.update(status=AgentStatus.AVAILABLE, current_load=0)

    graph = StateGraph(State)
    graph.add_node("route", route)
    graph.add_node("work", work)
    graph.add_edge(START, "route")
    graph.add_conditional_edges("route", lambda state: "work" if state["worker"] else END)
    graph.add_edge("work", END)
    return graph.compile()


async def main() -> None:
    """Run three jobs; nobody can do the last one."""
    agents = [
        AgentInfo("coder-1", capabilities=("python",), max_load=1),
        AgentInfo("writer-1", capabilities=("write",), max_load=1),
    ]
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(open_registry())
        workers: dict[str | None, AgentSession] = {}
        for agent in agents:
            workers[agent.id] = await stack.enter_async_context(registry.session(agent))
        graph = build(registry, workers)
        for skill, job in [("python", "the parser"), ("write", "the report"), ("sql", "the query")]:
            state = await graph.ainvoke({"skill": skill, "job": job})
            print(state.get("answer", f"no live agent can do {job}"))


if __name__ == "__main__":
    asyncio.run(main())
