"""Drivers are imported only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agentic

DRIVERS = ("redis", "hiredis", "aiosqlite", "sqlite3", "typer", "rich", "pydantic", "pytest")


def loaded_by(code: str) -> set[str]:
    """Return the drivers that a new interpreter has loaded after running some code."""
    show = f"import sys; print(*(name for name in {DRIVERS} if name in sys.modules))"
    command = [sys.executable, "-c", f"{code}; {show}"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("code", "drivers"),
    [
        ("import agentic, agentic.asgi, agentic.abc, agentic.doctor", set()),
        ("from agentic import MemoryRegistry, open_registry; open_registry('memory://')", set()),
        ("from agentic import open_registry; open_registry('sqlite:///x.db')", {"aiosqlite", "sqlite3"}),
        ("from agentic import open_registry; open_registry('redis://h')", {"redis", "hiredis"}),
        ("from agentic import RedisRegistry; RedisRegistry('redis://h')", {"redis", "hiredis"}),
    ],
)
def test_a_driver_is_loaded_with_the_first_registry_that_needs_it(code: str, drivers: set[str]) -> None:
    assert loaded_by(code) == drivers


def test_every_public_name_is_there_and_no_other() -> None:
    assert {getattr(agentic, name).__name__ for name in agentic.__all__} == set(agentic.__all__)
    assert set(agentic.__all__) <= set(dir(agentic))
    with pytest.raises(AttributeError, match="^module 'agentic' has no attribute 'PostgresRegistry'$"):
        _ = agentic.PostgresRegistry
