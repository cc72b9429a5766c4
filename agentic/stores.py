"""The installed stores: the class behind each scheme, and the options that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from agentic.errors import ConfigurationError
from agentic.registry import AgentRegistry
from agentic.text import printable, type_name

GROUP: Final = "agentic.backends"
"""Entry points of this group name a store's scheme and the class of its registry."""

_DISTRIBUTION: Final = "agentic-registry"
_REDIS: Final = "agentic.backends.redis.registry:RedisRegistry"
OWN: Final = {
    "memory": "agentic.backends.memory:MemoryRegistry",
    "sqlite": "agentic.backends.sqlite.registry:SQLiteRegistry",
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys", "unix"), _REDIS),
}
"""The entry points of this distribution, as in pyproject.toml.

Listed here so that they are found without reading the metadata of every installed distribution, and in a source tree
that is not installed.
"""


def store_class(name: str) -> type[AgentRegistry]:
    """Import the class of the store that a scheme names, and with it the store's driver.

    Raises:
        ConfigurationError: No such store is installed, several distributions have it, or it cannot be imported; the
            message names the distribution.
    """
    target, distribution = (OWN[name], _DISTRIBUTION) if name in OWN else _installed(name)
    try:
        found = resolve_name(target)
        if not (isinstance(found, type) and issubclass(found, AgentRegistry)):
            raise TypeError(f"{target} is no AgentRegistry class")
        options_of(found)  # Its annotations may name what is not imported at run time.
    except Exception as error:
        problem = f"{type_name(error)}: {printable(str(error))}"
        raise ConfigurationError(f"the {name} store of {distribution} cannot be used: {problem}") from error
    return found


def _installed(name: str) -> tuple[str, str]:
    """Return where another distribution has the class of a store, and the distribution's name."""
    # Imported here: it takes longer than all of this package, and only stores of others need it.
    from importlib.metadata import entry_points  # noqa: PLC0415

    entries = entry_points(group=GROUP)
    found = {each.value: each.dist.name if each.dist else "?" for each in entries if each.name == name}
    if not found:
        names = ", ".join(dict.fromkeys([*OWN, *sorted(entries.names)]))
        raise ConfigurationError(
            "unsupported registry backend: expected a URL such as memory://, sqlite:///file.db or "
            "redis://localhost:6379/0; installed are "
            f"{printable(names, 120)}; other stores are packages with an entry point in the group {GROUP}"
        )
    if len(found) > 1:
        raise ConfigurationError(f"several distributions have a {name} store: {', '.join(sorted(found.values()))}")
    ((target, distribution),) = found.items()
    return target, distribution


def options_of(store: type[AgentRegistry]) -> Mapping[str, type]:
    """Return the options of a store by name, each with the type that text is converted to."""
    return plain_arguments(store.__init__)


@cache
def plain_arguments(constructor: Callable[..., None]) -> Mapping[str, type]:
    """Return the arguments annotated as `str`, `int`, `float` or `bool`, also in a union or as literals."""
    return {
        name: kind
        for name, hint in get_type_hints(constructor).items()
        for kind in (str, int, float, bool)  # Of several, the last one counts.
        if kind in _members(hint)
    }


def _members(hint: Any) -> list[Any]:
    """Return the types that an annotation admits."""
    if get_origin(hint) in (Union, UnionType):
        return [member for each in get_args(hint) for member in _members(each)]
    return [type(each) for each in get_args(hint)] if get_origin(hint) is Literal else [hint]
