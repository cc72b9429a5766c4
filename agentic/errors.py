"""The errors of this library: one base class, and a subclass for each case that callers handle differently."""

from __future__ import annotations

from agentic.text import printable


class RegistryError(Exception):
    """Base of every error this library raises on purpose.

    Attributes:
        code: An HTTP status: 400 for invalid input, 404 for an absent agent, 409 for a conflict, 500 for a store that
            refused or a corrupt record, 503 for a store that is unavailable or a registry that is not open.
        message: One line that says what is wrong and, where known, what to do. Contains no secret.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidAgentError(RegistryError, ValueError):
    """An agent, a field or an id is invalid; raised before any I/O.

    Attributes:
        field: The invalid field, such as `"id"` or `"capabilities[2]"`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(400, message)
        self.args = (field, message)
        self.field = field


class ConfigurationError(RegistryError, ValueError):
    """A URL, an option or a duration is invalid; nothing was opened or changed."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)
        self.args = (message,)


class AgentNotFoundError(RegistryError, LookupError):
    """The store has no such agent.

    Attributes:
        agent_id: The id that was not found.
    """

    def __init__(self, agent_id: str) -> None:
        super().__init__(404, f"agent not found: {printable(agent_id)}")
        self.args = (agent_id,)
        self.agent_id = agent_id


class AgentReplacedError(RegistryError):
    """A later start of the agent has registered: this one must stop. Nothing was changed.

    Attributes:
        agent_id: The agent.
        incarnation: The incarnation of the later start.
    """

    def __init__(self, agent_id: str, incarnation: int) -> None:
        super().__init__(409, f"agent {printable(agent_id)!r} was replaced by a later start of it: this one must stop")
        self.args = (agent_id, incarnation)
        self.agent_id = agent_id
        self.incarnation = incarnation


class BackendError(RegistryError):
    """The store failed; `__cause__` is the driver's error, if any.

    Catch a subclass to know who must act: the caller retries after `BackendUnavailableError`, an operator must act on
    `BackendRejectedError`, and the writer of the record on `CorruptRecordError`.

    A write that raised this error may still have taken effect, because the answer may have been lost.

    Attributes:
        reaped: The ids that a failed `reap` had already marked offline; empty for other calls.
    """

    def __init__(self, message: str) -> None:
        super().__init__(500, message)
        self.args = (message,)
        self.reaped: tuple[str, ...] = ()


class BackendUnavailableError(BackendError):
    """The store cannot be reached, did not answer in time, or is temporarily unable to serve: retry."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 503


class BackendRejectedError(BackendError):
    """The store refused the call, and will refuse it until an operator acts; the message says what to do."""


class CorruptRecordError(BackendError):
    """The stored record of one agent is invalid; other agents are not affected.

    Attributes:
        agent_id: The agent of the record.
    """

    def __init__(self, message: str, agent_id: str) -> None:
        super().__init__(message)
        self.args = (message, agent_id)
        self.agent_id = agent_id


class RegistryClosedError(RegistryError):
    """The registry is not open: never opened, closed, or opened in another event loop or process.

    Attributes:
        reaped: As in `BackendError`.
    """

    def __init__(self, message: str = "the registry is not open: use it inside 'async with'") -> None:
        super().__init__(503, message)
        self.args = (message,)
        self.reaped: tuple[str, ...] = ()


class RegistryOpenError(RegistryError):
    """`open` was called on a registry that is already open or still closing."""

    def __init__(self, message: str = "the registry is open already, or not yet closed") -> None:
        super().__init__(409, message)
        self.args = (message,)
