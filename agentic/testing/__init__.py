"""Tools for testing programs and custom stores: the contract of stores, a fake clock, real servers, `wait_until`.

Needs the extra `testing`: `pip install "agentic-registry[testing]"`. Provisional: it may change until presence,
placement and watching stand on it.
"""

try:
    import pytest
    import pytest_asyncio as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"agentic.testing needs {error.name}: pip install 'agentic-registry[testing]'", name=error.name
    ) from error

# Before the first import, so that pytest rewrites its assertions and failures show values.
pytest.register_assert_rewrite("agentic.testing.contract")

from agentic.testing.clock import FakeClock  # noqa: E402
from agentic.testing.contract import RegistryContract  # noqa: E402
from agentic.testing.servers import RedisServer  # noqa: E402
from agentic.testing.store import StoreUnderTest  # noqa: E402
from agentic.testing.waiting import wait_until  # noqa: E402

__all__ = ["FakeClock", "RedisServer", "RegistryContract", "StoreUnderTest", "wait_until"]
