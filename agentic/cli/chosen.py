"""The store of a command, from its options or the environment."""

from __future__ import annotations

from typing import Annotated

import typer

from agentic.config import StoreChoice, as_config, choose
from agentic.errors import ConfigurationError
from agentic.stores import options_of


def _or_before_command(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """Return an option's value; if it was not given after the command, the value given before the command."""
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
        callback=_or_before_command,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="PREFIX",
        help="What the registry's keys begin with, as in Redis.",
        callback=_or_before_command,
    ),
]


def chosen(url: str | None, prefix: str | None) -> StoreChoice:
    """Return the store that a command's options name; the prefix option overrides the URL's.

    Raises:
        ConfigurationError: An option is wrong, or the store has no prefixes.
    """
    store = choose(as_config(url))
    return store if prefix is None else store.with_options(prefix=prefix)


def shared(url: str | None, prefix: str | None) -> StoreChoice:
    """Return the store like `chosen`, for a command that needs a store shared by programs.

    Raises:
        ConfigurationError: As in `chosen`; or no store is named, or programs cannot share it.
    """
    store = chosen(url, prefix)
    if store.is_default:
        raise ConfigurationError("no store is named: pass --url sqlite:///fleet.db, or set AGENTIC_URL")
    if not store.kind.is_shared:
        raise ConfigurationError(
            f"no other program sees the agents of a {store.name} store: name a store by its URL, as in AGENTIC_URL"
        )
    return store.with_options(wait=0)  # Fail at once: the user can repeat the command.


def existing(url: str | None, prefix: str | None) -> StoreChoice:
    """Return the store like `shared`, for a command that must not create it.

    Raises:
        ConfigurationError: As in `shared`.
    """
    store = shared(url, prefix)
    return store.with_options(create=False) if "create" in options_of(store.kind) else store
