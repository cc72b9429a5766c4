"""The contract of every store, as a class of tests: subclass it and provide a store."""

from __future__ import annotations

from agentic.testing.contract.bounds import Bounds
from agentic.testing.contract.calls import Calls
from agentic.testing.contract.drains import Drains
from agentic.testing.contract.fleet import Fleet
from agentic.testing.contract.lifecycle import Lifecycle
from agentic.testing.contract.pages import Pages
from agentic.testing.contract.reaping import Reaping
from agentic.testing.contract.sharing import Sharing
from agentic.testing.contract.starts import Starts


class RegistryContract(Calls, Starts, Drains, Fleet, Pages, Reaping, Lifecycle, Sharing, Bounds):
    """Some 400 tests of every guarantee of `AgentRegistry` and `Backend` that depends on the store.

    Subclass it in a test module, and define the fixture `store`:

    ```python
    class MyStore(StoreUnderTest):
        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

        def make(self, *, ttl: float | None = None, timeout: float = 5.0, **options: Any) -> AgentRegistry:
            backend = MyBackend(self.path, ttl=ttl, timeout=timeout, clock=self.clock)
            return AgentRegistry(backend, **options)


    class TestMyStore(RegistryContract):
        @pytest.fixture
        def store(self, tmp_path: Path) -> MyStore:
            return MyStore(tmp_path / "agents")
    ```

    The tests are coroutines for pytest-asyncio, in strict or auto mode.
    """
