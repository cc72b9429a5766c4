"""A persistent registry of live AI agents for asyncio, in memory, SQLite or Redis."""

import logging

from agentic.agent import AgentInfo, AgentStatus
from agentic.backends.memory import MemoryRegistry
from agentic.backends.redis import RedisRegistry
from agentic.backends.sqlite import SQLiteRegistry
from agentic.config import RegistryConfig, open_registry
from agentic.errors import (
    AgentNotFoundError,
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
from agentic.reaper import Reaper
from agentic.registry import AgentRegistry
from agentic.session import AgentSession

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AgentInfo",
    "AgentNotFoundError",
    "AgentRegistry",
    "AgentSession",
    "AgentStatus",
    "BackendError",
    "BackendRejectedError",
    "BackendUnavailableError",
    "ConfigurationError",
    "CorruptRecordError",
    "InvalidAgentError",
    "MemoryRegistry",
    "Reaper",
    "RedisRegistry",
    "RegistryClosedError",
    "RegistryConfig",
    "RegistryError",
    "RegistryOpenError",
    "SQLiteRegistry",
    "open_registry",
]
