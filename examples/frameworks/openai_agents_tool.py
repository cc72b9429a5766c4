"""An OpenAI Agents SDK agent that asks the registry who can do a job, and is an agent of the fleet itself.

Run it as it stands: the model is the SDK's scripted one, so it needs no key and no network. Leave `model` out to use a
real one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agents import Agent, RunContextWrapper, Runner, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from agentic import AgentInfo, AgentRegistry, AgentStatus, open_registry


@dataclass
class Fleet:
    """What the tools need."""

    registry: AgentRegistry


@function_tool
async def find_agents(context: RunContextWrapper[Fleet], skill: str) -> str:
    """Name the live agents that have a skill.

    Args:
        context: Holds the registry.
        skill: What the agent must be able to do.
    """
    agents = await context.context.registry.list()
    able = [agent.id for agent in agents if skill in agent.capabilities and agent.status is not AgentStatus.OFFLINE]
    return ", ".join(sorted(able)) or "none"


SCRIPT = ScriptedModel(
    [
        [function_call("find_agents", {"skill": "python"}, call_id="call-1")],
        [assistant_message("coder-1 can do it.")],
    ]
)


async def main() -> None:
    """Ask once, with two agents in the fleet."""
    set_tracing_disabled(disabled=True)
    dispatcher = Agent[Fleet](
        name="dispatcher",
        instructions="Find an agent for the job with find_agents.",
        tools=[find_agents],
        model=SCRIPT,
    )
    async with open_registry() as registry:
        await registry.register(AgentInfo("coder-1", capabilities=("python",)))
        async with registry.session(AgentInfo("dispatcher-1", capabilities=("dispatch",))):
            result = await Runner.run(dispatcher, "Who can write Python?", context=Fleet(registry))
    for item in result.new_items:
        if item.type == "tool_call_output_item":
            print("the registry said:", item.output)
    print("the agent said:", result.final_output)


if __name__ == "__main__":
    asyncio.run(main())
