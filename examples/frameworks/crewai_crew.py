"""A crew that is an agent of the fleet: busy while it works, and alive although its model blocks a thread.

Run it as it stands: the model is a stand-in that needs no network. Put `LLM(model=...)` in its place.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")

from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM

from agentic import AgentInfo, AgentStatus, open_registry


class FixedAnswer(BaseLLM):
    """A model that thinks for a while and always says the same."""

    def call(self, messages: Any, *arguments: Any, **options: Any) -> str:
        """Return the answer, and block the thread as a slow model does."""
        time.sleep(0.5)
        return "Thought: I know.\nFinal Answer: forty-two agents"

    async def acall(self, messages: Any, *arguments: Any, **options: Any) -> str:
        """Return the answer."""
        return await asyncio.to_thread(self.call, messages)


def crew() -> Crew:
    """Return a crew of one agent with one task."""
    counter = Agent(
        role="counter", goal="count agents", backstory="Counts.", llm=FixedAnswer(model="fixed"), verbose=False
    )
    task = Task(description="How many agents are there?", expected_output="a number", agent=counter)
    return Crew(agents=[counter], tasks=[task], verbose=False)


async def main() -> None:
    """Run the crew in a session."""
    async with open_registry() as registry:
        agent = AgentInfo("crew-1", capabilities=("count",), max_load=1)
        async with registry.session(agent, interval=0.1) as session:
            before = session.last_beat_at
            await session.update(status=AgentStatus.BUSY, current_load=1)
            # A crew blocks: in a thread it does not hold up the heartbeats.
            answer = await asyncio.to_thread(crew().kickoff)
            await session.update(status=AgentStatus.AVAILABLE, current_load=0)
            print(answer.raw)
            print("heartbeats went on:", session.healthy and session.last_beat_at != before)


if __name__ == "__main__":
    asyncio.run(main())
