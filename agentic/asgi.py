"""A lifespan that gives a web application a registry: Starlette, FastAPI, Litestar and others. Imports no framework."""

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
    """Return a lifespan that keeps a registry open while an application runs.

    `FastAPI(lifespan=lifespan(url))`, `Starlette(lifespan=lifespan(url))`, `Litestar(lifespan=[lifespan(url)])`. While
    the application runs, `app.state.registry` is the open registry and, with `agent`, `app.state.agent_session` is its
    session. If the background task of the session or the reaper fails, the error is logged immediately and raised when
    the application stops; until then, requests are served.

    Args:
        source: As in `open_registry`: a URL, a path, a configuration, or None for the environment.
        agent: Registered while the application runs. Each worker process registers its own agent: the host name and the
            process id are appended to the `id`, as in `gateway-web1-4711`.
        reaper: Whether each process runs a reaper with the default options.
        **options: As in `open_registry`, such as `ttl` or `wait`.

    Raises:
        InvalidAgentError: A field of the agent is invalid.
        ConfigurationError: `reaper` is not a `bool`. Invalid options of the store raise when the application starts.
    """
    template, has_reaper = None if agent is None else valid_agent(agent), flag(reaper, "reaper")

    @asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            registry = app.state.registry = await stack.enter_async_context(open_registry(source, **options))
            # Opened, not entered: a failure must not cancel the task in which the server runs the lifespan.
            if has_reaper:
                background_reaper = Reaper(registry)
                await background_reaper.open()
                stack.push_async_callback(background_reaper.aclose)
            if template is not None:
                session = app.state.agent_session = registry.session(_agent_of_this_process(template))
                await session.open()
                stack.push_async_callback(session.aclose)
            yield

    return running


def _agent_of_this_process(agent: AgentInfo) -> AgentInfo:
    return replace(agent, id=f"{agent.id}-{socket.gethostname()}-{os.getpid()}")
