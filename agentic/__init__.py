"""A persistent registry of live AI agents for asyncio, in memory, SQLite or Redis."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentic.agent import AgentInfo, AgentStatus, Beat, Drain
from agentic.config import RegistryConfig, open_registry
from agentic.errors import (
    AgentNotFoundError,
    AgentReplacedError,
    BackendError,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigurationError,
    CorruptRecordError,
    InvalidAgentError,
    RegistryClosedError,
    RegistryError,
    RegistryOpenError,
)
from agentic.page import Page
from agentic.reaper import Reaper
from agentic.registry import AgentRegistry
from agentic.session import AgentSession

if TYPE_CHECKING:
    from agentic.backends.memory import MemoryRegistry
    from agentic.backends.redis.registry import RedisRegistry
    from agentic.backends.sqlite.registry import SQLiteRegistry

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AgentInfo",
    "AgentNotFoundError",
    "AgentRegistry",
    "AgentReplacedError",
    "AgentSession",
    "AgentStatus",
    "BackendError",
    "BackendRejectedError",
    "BackendUnavailableError",
    "Beat",
    "ConfigurationError",
    "CorruptRecordError",
    "Drain",
    "InvalidAgentError",
    "MemoryRegistry",
    "Page",
    "Reaper",
    "RedisRegistry",
    "RegistryClosedError",
    "RegistryConfig",
    "RegistryError",
    "RegistryOpenError",
    "SQLiteRegistry",
    "open_registry",
]

_STORES = {
    "MemoryRegistry": "agentic.backends.memory",
    "RedisRegistry": "agentic.backends.redis.registry",
    "SQLiteRegistry": "agentic.backends.sqlite.registry",
}


def __getattr__(name: str) -> Any:
    """Import a store and its driver on first use."""
    if name not in _STORES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_STORES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
