"""Split and check the URL of a store, and show it without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from ipaddress import IPv6Address
from typing import Final, NoReturn
from urllib.parse import quote, unquote

from agentic.errors import ConfigurationError
from agentic.options import MAX_TEXT, text
from agentic.text import type_name

_SECRET: Final = re.compile("password|secret|token|credential|api_?key")
"""Matches the names of parameters and options whose values are never shown."""

Host = tuple[str, int | None]

_URL: Final = re.compile(
    r"(?P<scheme>[^:/?#]*)://((?P<user>[^/?#@]*)@)?(?P<hosts>[^/?#@]*)(?P<path>/[^?#]*)?(\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]*\])(:(?P<port>[0-9]{1,5}))?")
_LOOKS_LIKE_A_URL: Final = re.compile(r"\s*([A-Za-z]://|[A-Za-z][A-Za-z0-9+.-]+:/)")
"""Also matches a mistyped single `/`, except after a single letter, which may be a drive."""
_MAYBE_A_PASSWORD: Final = 8
"""The length from which a single word in place of a host is shown as `***`."""


@dataclass(frozen=True, repr=False)
class StoreURL:
    """The parts of a store's URL, percent-decoded.

    `str` shows it without secrets: `***` replaces passwords, a user name without a password, and a single word of eight
    characters or more in place of a host, because the last two may be misplaced passwords.

    Attributes:
        scheme: In lower case.
        hosts: Names with ports; at least one, which may be empty.
        segments: The path after its first `/`, split at each further `/`; empty if there is no path.
        username: Empty if not given.
        password: Empty if not given.
        parameters: The parameters of the query; no value is empty.
        written: The original URL without its query, including secrets.
    """

    scheme: str
    hosts: tuple[Host, ...]
    segments: tuple[str, ...]
    username: str
    password: str
    parameters: dict[str, str]
    written: str = field(compare=False)

    @classmethod
    def parse(cls, url: object) -> StoreURL:
        """Split and check a URL. A `StoreURL` is returned unchanged.

        Raises:
            ConfigurationError: It is malformed; the message shows no part of it.
        """
        if isinstance(url, StoreURL):
            return url
        whole = text(url, "URL")
        if "://" not in whole:
            malformed("must begin with a scheme, as in sqlite:///fleet.db")
        _check_characters(whole)
        parts = _URL.fullmatch(whole)
        # A raw '/', '?', '#' or '@' in a password ends up in the path or query. A file's path may contain '@'.
        if parts is None or ((parts["user"] or parts["hosts"]) and "@" in whole[parts.end("hosts") :]):
            _not_encoded()
        user = parts["user"] or ""
        if re.search(r"[\[\] ]", user):
            _not_encoded()
        username, _, password = user.partition(":")
        return cls(
            scheme=parts["scheme"].lower(),
            hosts=tuple(_host(each) for each in parts["hosts"].split(",")),
            segments=tuple(_decoded(each) for each in parts["path"][1:].split("/")) if parts["path"] else (),
            username=_decoded(username),
            password=_decoded(password),
            parameters={} if parts["query"] is None else _parameters(parts["query"]),
            written=whole.partition("?")[0],
        )

    @property
    def path(self) -> str:
        """The path without its first `/`."""
        return "/".join(self.segments)

    def file(self) -> str | None:
        """Return the path of a URL that can only name a file, or None if it names none.

        Raises:
            ConfigurationError: It has a host or a user, or its scheme has a `+`.
        """
        store, plus, _ = self.scheme.partition("+")
        if plus:
            malformed(f"{store} takes nothing between its name and ://")
        if self.hosts != (("", None),) or self.username or self.password:
            malformed(
                f"{self.scheme}:// takes no host; a file is {self.scheme}:///relative/file or {self.scheme}:////absolute/file"
            )
        return self.path or None

    def without_parameters(self) -> StoreURL:
        """Return the URL without its query."""
        return replace(self, parameters={})

    def __str__(self) -> str:
        user = f"{quote(self.username)}:***@" if self.password else "***@" if self.username else ""
        hosts = ",".join(shown_host(*each) for each in self.hosts)
        path = f"/{quote(self.path)}" if self.segments else ""
        query = "&".join(
            f"{name}={'***' if is_secret(name) else quote(value)}" for name, value in self.parameters.items()
        )
        return f"{self.scheme}://{user}{hosts}{path}{query and '?'}{query}"

    def __repr__(self) -> str:
        return f"StoreURL({str(self)!r})"


def store_name(url: str) -> str:
    """Return the name of the store in a URL: its scheme up to a `+`, in lower case; empty if there is no scheme."""
    scheme, separator, _ = url.partition("://")
    return scheme.partition("+")[0].lower() if separator else ""


def is_secret(name: str) -> bool:
    """Return whether the value of the parameter or option with this name must not be shown."""
    return _SECRET.search(name) is not None


def malformed(problem: str) -> NoReturn:
    """Raise the error for an invalid URL. `problem` must not contain any part of it."""
    raise ConfigurationError(f"URL: {problem}")


def refuse_url(value: str, name: str) -> str:
    """Return a text unless it looks like a URL.

    Raises:
        ConfigurationError: It looks like a URL, which may contain a password; the message does not show it.
    """
    if _LOOKS_LIKE_A_URL.match(value):
        raise ConfigurationError(f"{name}: looks like a URL; open_registry, AGENTIC_URL and `url` take a store's URL")
    return value


def file_path(value: object, name: str) -> str:
    """Check the path of a file, and return it as text.

    Raises:
        ConfigurationError: It is not text or an `os.PathLike`, looks like a URL, or cannot be the path of a file; the
            message shows no part of it.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise ConfigurationError(f"{name}: must be a file's path, got {type_name(path)}")
    path = str.__str__(path)
    if not path:
        raise ConfigurationError(f"{name}: must not be empty")
    if len(path) > MAX_TEXT:
        raise ConfigurationError(f"{name}: must be at most {MAX_TEXT} characters, got {len(path)}")
    if "\0" in path or path.endswith("/"):
        raise ConfigurationError(f"{name}: holds a NUL character, or names a folder")
    # Python represents the non-UTF-8 bytes of a file name as U+DC80 to U+DCFF, and cannot encode other surrogates.
    if re.search("[\ud800-\udc7f\udd00-\udfff]", path):
        raise ConfigurationError(f"{name}: holds a lone surrogate")
    return refuse_url(path, name)


def suggestion(name: object, known: Collection[str]) -> str:
    """Return the end of the message for an unknown name: the closest known name, or all. The name may be a secret."""
    close = get_close_matches(name, known, n=1) if isinstance(name, str) and len(name) < 40 else []
    return f"; did you mean {close[0]!r}?" if close else f": expected {', '.join(known)}"


def _not_encoded() -> NoReturn:
    malformed(
        "special characters in a user name, password, path or parameter must be percent-encoded "
        "('@' is %40, '/' %2F, '?' %3F, '#' %23, '[' %5B, ']' %5D, a space %20)"
    )


def _check_characters(whole: str) -> None:
    if not whole.isprintable():
        malformed("holds a character that is not printable, such as a tab or a newline")
    if re.search("%(?![0-9A-Fa-f]{2})", whole):
        malformed("'%' must be followed by two hexadecimal digits; '%' itself is %25")


def _decoded(part: str) -> str:
    if "%" not in part:
        return part
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError:
        decoded = ""
    if not decoded.isprintable() or not decoded:  # Outside `except`, whose error shows the text.
        malformed("percent-encoded characters must be printable and UTF-8")
    return decoded


def _host(written: str) -> Host:
    parts = _HOST.fullmatch(written)
    name, port = (parts["name"].strip("[]"), parts["port"]) if parts else ("", None)
    if parts is None or (port is not None and not 1 <= int(port) <= 65535):
        malformed("a host must be a name or address of ASCII letters, and its port a number from 1 to 65535")
    if written.startswith("[") and not _is_ipv6(name):
        malformed("a host in brackets must be an IPv6 address")
    return name, None if port is None else int(port)


def _is_ipv6(address: str) -> bool:
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return True


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for each in query.split("&"):
        name, _, value = each.partition("=")
        if not name or not value:
            malformed("a parameter must be written name=value, and the value must not be empty")
        if name in parameters:
            malformed("a parameter is given twice")
        parameters[name] = _decoded(value)
    return parameters


def shown_host(name: str, port: int | None) -> str:
    """Return a host as text, or `***` if it may be a misplaced password."""
    if port is None and len(name) >= _MAYBE_A_PASSWORD and name != "localhost" and not re.search("[.:]", name):
        return "***"
    address = f"[{name}]" if ":" in name else name
    return address if port is None else f"{address}:{port}"


def with_parameter(url: str, name: str, value: object) -> str:
    """Append a query parameter to a URL. Its value must be quoted."""
    return f"{url}{'&' if '?' in url else '?'}{name}={value}"
