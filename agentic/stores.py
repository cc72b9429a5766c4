"""Find the class of a store by its scheme, and the options of that class."""

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
"""The group of entry points that map the scheme of a store to the class of its registry."""

_DISTRIBUTION: Final = "agentic-registry"
_REDIS: Final = "agentic.backends.redis.registry:RedisRegistry"
OWN: Final = {
    "memory": "agentic.backends.memory:MemoryRegistry",
    "sqlite": "agentic.backends.sqlite.registry:SQLiteRegistry",
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys", "unix"), _REDIS),
}
"""The entry points of this distribution, as in pyproject.toml.

They are repeated here so that finding them does not read the metadata of all installed distributions, and works in a
source tree that is not installed.
"""


def store_class(name: str) -> type[AgentRegistry]:
    """Import the class of the store with a scheme, and thereby its driver.

    Raises:
        ConfigurationError: The store is not installed, is in several distributions, or cannot be imported; the message
            names the distribution.
    """
    target, distribution = (OWN[name], _DISTRIBUTION) if name in OWN else _installed(name)
    try:
        found = resolve_name(target)
        if not (isinstance(found, type) and issubclass(found, AgentRegistry)):
            raise TypeError(f"{target} is not an AgentRegistry class")
        options_of(found)  # Fails here if its annotations use names that are not imported at run time.
    except Exception as error:
        problem = f"{type_name(error)}: {printable(str(error))}"
        raise ConfigurationError(f"the {name} store of {distribution} cannot be used: {problem}") from error
    return found


def _installed(name: str) -> tuple[str, str]:
    """Return the target of the entry point of a store in another distribution, and the name of the distribution."""
    # Imported only for stores of other distributions, because it takes longer than importing this package.
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
    """Return the options of a store by name, each with the type to which text is converted."""
    return plain_arguments(store.__init__)


@cache
def plain_arguments(constructor: Callable[..., None]) -> Mapping[str, type]:
    """Return the arguments annotated as `str`, `int`, `float` or `bool`, including in unions and as literals."""
    return {
        name: kind
        for name, hint in get_type_hints(constructor).items()
        for kind in (str, int, float, bool)  # If several match, the last one is used.
        if kind in _members(hint)
    }


def _members(hint: Any) -> list[Any]:
    """Return the types that an annotation allows."""
    if get_origin(hint) in (Union, UnionType):
        return [member for each in get_args(hint) for member in _members(each)]
    return [type(each) for each in get_args(hint)] if get_origin(hint) is Literal else [hint]
