"""The Lua scripts and their outcome codes."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

from agentic.agent import IN_RECORD

DONE, ABSENT, CORRUPT, WRONG_TYPE, TOO_LARGE, SLOW, AGAIN, REPLACED, AHEAD = 1, 0, -1, -2, -3, -4, -5, -6, -7
WAS_OFFLINE, REWRITTEN = 2, 4
ANY: Final = 9_999_999_999_999_999
"""Outcome codes for one agent, as in prelude.lua, what a heartbeat adds to DONE, and the number that stands for any
incarnation in a list."""


class Script(NamedTuple):
    """A script's source and its SHA-1 for EVALSHA."""

    sha: str
    text: str


FIELDS_IN_LUA: Final = "local FIELDS = {{{}}}\n".format(
    ", ".join(f"{{'{field.name}', '{field.kind}'}}" for field in IN_RECORD)
)
"""What json.lua knows of the fields of a record."""


def _load(name: str, *shared: str) -> Script:
    """Read a script and the files it shares with others."""
    folder = files("agentic.backends.redis") / "lua"
    text = "".join((folder / f"{part}.lua").read_text() for part in ("prelude", *shared, name))
    if "json" in shared:
        text = FIELDS_IN_LUA + text
    return Script(sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


SCRIPTS: Final = {
    "heartbeat": _load("heartbeat", "incarnations", "usual"),
    "reap": _load("reap", "incarnations", "usual", "json", "writer"),
    **{name: _load(name, "incarnations", "usual", "json", "writer", "fence") for name in ("update", "deregister")},
    "drain": _load("drain", "incarnations", "usual", "json", "writer", "drains"),
    **{
        name: _load(name, "incarnations", "usual", "json", "writer", "drains", "fence")
        for name in ("heartbeat_slow", "register")
    },
    **{name: _load(name, "writer") for name in ("settle", "clear_drains")},
}
