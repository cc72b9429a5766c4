"""The store that a command works on: chosen by its options, else by the environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final
from urllib.parse import quote

import typer

from agentic.config import RegistryConfig, as_config, resolved, shared
from agentic.urls import StoreURL

_NOT_IN_A_PATH: Final = {ord(char): quote(char) for char in "%?#"}


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
        help="In Redis, what the registry's keys begin with.",
        callback=_or_before_the_command,
    ),
]


def chosen(url: str | None, prefix: str | None) -> RegistryConfig:
    """Return the configuration that a command's options name; a prefix given as an option counts above the URL's.

    Raises:
        ConfigurationError: It is wrong, or a store other than Redis was given a prefix.
    """
    config = as_config(url)
    return config if prefix is None else replace(resolved(config), prefix=prefix)


def to_look_at(url: str | None, prefix: str | None) -> RegistryConfig:
    """Return the same for a command that looks at a store which others use, and creates nothing there.

    Raises:
        ConfigurationError: As `chosen`, or it is the memory store.
    """
    config = shared(chosen(url, prefix))
    return replace(config, create=False) if config.backend == "sqlite" else config


def shown(config: RegistryConfig) -> str:
    """Return the store of a sound configuration as a URL, with `***` in place of its secrets."""
    config = resolved(config)
    if config.backend == "memory":
        return "memory://"
    if config.backend == "sqlite":
        return f"sqlite:///{config.path.translate(_NOT_IN_A_PATH)}" if config.path else "sqlite://"
    url = str(StoreURL.parse(config.url)) if config.url else "redis://localhost:6379/0"
    options = {"db": config.db, "prefix": quote(config.prefix)}
    query = "&".join(f"{name}={value}" for name, value in options.items() if value)
    return f"{url}?{query}" if query else url
