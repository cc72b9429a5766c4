"""Every error of this library: one base class, and a subclass for each case that a caller handles differently."""

from __future__ import annotations

from agentic.text import printable


class RegistryError(Exception):
    """Base of every error this library raises on purpose.

    Attributes:
        code: An HTTP status: 400 for a caller's mistake, 404 for an absent agent, 409 for a conflict, 500 for a store
            that refused or holds a corrupt record, 503 for one that is unavailable or not open.
        message: One line that says what is wrong and, where known, what to do; never holds a secret.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidAgentError(RegistryError, ValueError):
    """An agent, a field or an id was refused before any I/O; nothing has changed.

    Attributes:
        field: The field at fault, such as `"id"` or `"capabilities[2]"`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(400, message)
        self.args = (field, message)
        self.field = field


class ConfigurationError(RegistryError, ValueError):
    """A URL, an option or a duration is wrong; nothing was opened and nothing has changed."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)
        self.args = (message,)


class AgentNotFoundError(RegistryError, LookupError):
    """The store answered, and no such agent is registered.

    Attributes:
        agent_id: The id that was asked for.
    """

    def __init__(self, agent_id: str) -> None:
        super().__init__(404, f"agent not found: {printable(agent_id)}")
        self.args = (agent_id,)
        self.agent_id = agent_id


class BackendError(RegistryError):
    """The store failed; `__cause__` is the driver's error where there is one.

    Catch a subclass to know who must act: the caller retries after `BackendUnavailableError`, an operator must act on
    `BackendRejectedError`, and whoever wrote the record on `CorruptRecordError`.

    A write that failed this way may still have happened: the store may have applied it and lost the answer.

    Attributes:
        reaped: The ids that a failed `reap` had already marked offline; empty for every other call.
    """

    def __init__(self, message: str) -> None:
        super().__init__(500, message)
        self.args = (message,)
        self.reaped: tuple[str, ...] = ()


class BackendUnavailableError(BackendError):
    """The store cannot be reached, did not answer in time, or cannot serve for now: try again."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 503


class BackendRejectedError(BackendError):
    """The store refused, and will refuse again until somebody acts; the message says what to do."""


class CorruptRecordError(BackendError):
    """One agent's stored record is damaged, or is no agent's; all other agents are as they were.

    Attributes:
        agent_id: Whose record it is.
    """

    def __init__(self, message: str, agent_id: str) -> None:
        super().__init__(message)
        self.args = (message, agent_id)
        self.agent_id = agent_id


class RegistryClosedError(RegistryError):
    """The registry is not open: it was never entered, it has been closed, or it is another event loop's or process's.

    Attributes:
        reaped: As of `BackendError`.
    """

    def __init__(self, message: str = "the registry is not open: use it inside 'async with'") -> None:
        super().__init__(503, message)
        self.args = (message,)
        self.reaped: tuple[str, ...] = ()


class RegistryOpenError(RegistryError):
    """`open` was called on a registry that is open already, or not yet closed."""

    def __init__(self, message: str = "the registry is open already, or not yet closed") -> None:
        super().__init__(409, message)
        self.args = (message,)
