"""A web application with a registry, for Starlette, FastAPI, Litestar and others that call a lifespan; imports none."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Unpack

from msgspec.structs import replace

from agentic.agent import AgentInfo
from agentic.config import RegistryOptions, Source, open_registry
from agentic.options import flag
from agentic.reaper import Reaper
from agentic.validation import valid_agent


def lifespan(
    source: Source = None, agent: AgentInfo | None = None, reaper: bool = True, **options: Unpack[RegistryOptions]
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return a lifespan, which keeps a registry open while an application runs.

    `FastAPI(lifespan=lifespan(url))`, `Starlette(lifespan=lifespan(url))`, `Litestar(lifespan=[lifespan(url)])`. While
    the application runs, `app.state.registry` is the open registry, and with `agent`, `app.state.agent_session` is its
    session. Where the background task of the session or of the reaper fails, the error is logged at once and raised
    when the application ends; requests are answered meanwhile.

    Args:
        source: As of `open_registry`: a URL, a path, a configuration, or None for the environment.
        agent: What this application is, registered as long as it runs. Each worker process is an agent of its own: the
            names of its host and its process id are added to the `id`, as in `gateway-web1-4711`.
        reaper: Whether each process runs a reaper with the default options.
        **options: As of `open_registry`, such as `ttl` or `wait`.

    Raises:
        InvalidAgentError: A field of the agent is wrong.
        ConfigurationError: `reaper` is no `bool`. What is wrong with the store's options is raised when the application
            starts.
    """
    template, has_reaper = None if agent is None else valid_agent(agent), flag(reaper, "reaper")

    @asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            registry = app.state.registry = await stack.enter_async_context(open_registry(source, **options))
            # Opened and closed, not entered: a failure must not cancel the task in which the server keeps the lifespan.
            if has_reaper:
                sweeps = Reaper(registry)
                await sweeps.open()
                stack.push_async_callback(sweeps.aclose)
            if template is not None:
                session = app.state.agent_session = registry.session(_of_this_process(template))
                await session.open()
                stack.push_async_callback(session.aclose)
            yield

    return running


def _of_this_process(agent: AgentInfo) -> AgentInfo:
    return replace(agent, id=f"{agent.id}-{socket.gethostname()}-{os.getpid()}")
