"""The store that a command works on: chosen by its options, else by the environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from agentic.config import RegistryConfig, as_config, resolved, shared


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
