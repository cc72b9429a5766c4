"""The store that a command works on: chosen by its options, else by the environment."""

from __future__ import annotations

from typing import Annotated

import typer

from agentic.config import StoreChoice, as_config, choose
from agentic.errors import ConfigurationError
from agentic.stores import options_of


def _or_before_the_command(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """Return an option's value; where the command has none, the one given before the command."""
    if value is None and ctx.parent is not None and param.name is not None:
        before: str | None = ctx.parent.params.get(param.name)
        return before
    return value


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The store; by default that of the AGENTIC_* variables.",
        callback=_or_before_the_command,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="PREFIX",
        help="What the registry's keys begin with, as in Redis.",
        callback=_or_before_the_command,
    ),
]


def chosen(url: str | None, prefix: str | None) -> StoreChoice:
    """Return the store that a command's options name; a prefix given as an option counts above the URL's.

    Raises:
        ConfigurationError: They are wrong, or a store without prefixes was given one.
    """
    store = choose(as_config(url))
    return store if prefix is None else store.with_options(prefix=prefix)


def shared(url: str | None, prefix: str | None) -> StoreChoice:
    """Return the same for a command on agents that other programs see.

    Raises:
        ConfigurationError: As `chosen`, or no program sees another's agents in this store.
    """
    store = chosen(url, prefix)
    if store.is_default:
        raise ConfigurationError("no store is named: pass --url sqlite:///fleet.db, or set AGENTIC_URL")
    if not store.kind.is_shared:
        raise ConfigurationError(
            f"no other program sees the agents of a {store.name} store: name a store by its URL, as in AGENTIC_URL"
        )
    return store.with_options(wait=0)  # A command that fails at once can be repeated.


def to_look_at(url: str | None, prefix: str | None) -> StoreChoice:
    """Return the same for a command that creates nothing in the store.

    Raises:
        ConfigurationError: As `shared`.
    """
    store = shared(url, prefix)
    return store.with_options(create=False) if "create" in options_of(store.kind) else store
