"""Codes, messages and copies of errors."""

from __future__ import annotations

import copy
import pickle

import pytest

import agentic
from agentic import (
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

ERRORS = [
    (RegistryError(418, "teapot"), 418, "teapot", RegistryError),
    (InvalidAgentError("name", "name: wrong"), 400, "name: wrong", ValueError),
    (ConfigurationError("wrong"), 400, "wrong", ValueError),
    (AgentNotFoundError("a b"), 404, "agent not found: a b", LookupError),
    (BackendError("down"), 500, "down", RegistryError),
    (BackendUnavailableError("no answer"), 503, "no answer", BackendError),
    (BackendRejectedError("full"), 500, "full", BackendError),
    (CorruptRecordError("no JSON", "a b"), 500, "no JSON", BackendError),
    (RegistryOpenError(), 409, "the registry is open already, or not yet closed", RegistryError),
    (AgentNotFoundError("a\nb\x1b[31m"), 404, r"agent not found: a\nb\x1b[31m", LookupError),
    (RegistryClosedError(), 503, "the registry is not open: use it inside 'async with'", RegistryError),
]


@pytest.mark.parametrize(("error", "code", "message", "base"), ERRORS)
def test_an_error_has_a_code_and_a_message_and_survives_copying(
    error: RegistryError, code: int, message: str, base: type[Exception]
) -> None:
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(each) is type(error)
        assert isinstance(each, (RegistryError, base))
        assert (each.code, each.message, str(each)) == (code, message, message)
        assert vars(each) == vars(error)


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in agentic.__all__:
        assert getattr(agentic, name).__doc__, name
    public = {name for name, value in vars(agentic).items() if getattr(value, "__module__", "").startswith("agentic.")}
    assert public <= set(agentic.__all__)
