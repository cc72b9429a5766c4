"""The Lua scripts and their outcome codes."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

from agentic.agent import FIELDS

DONE, ABSENT, CORRUPT, WRONG_TYPE, TOO_LARGE, SLOW, AGAIN = 1, 0, -1, -2, -3, -4, -5
"""Outcome codes for one agent, as in prelude.lua. SLOW: needs another script. AGAIN: not done yet, send again."""


class Script(NamedTuple):
    """A script's source and its SHA-1 for EVALSHA."""

    sha: str
    text: str


FIELDS_IN_LUA: Final = "local FIELDS = {{{}}}\n".format(
    ", ".join(f"{{'{field.name}', '{field.kind}'}}" for field in FIELDS)
)
"""What json.lua knows of an agent's fields."""


def _load(name: str, *shared: str) -> Script:
    """Read a script and the files it shares with others."""
    folder = files("agentic.backends.redis") / "lua"
    text = "".join((folder / f"{part}.lua").read_text() for part in ("prelude", *shared, name))
    if "json" in shared:
        text = FIELDS_IN_LUA + text
    return Script(sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


SCRIPTS: Final = {
    "heartbeat": _load("heartbeat", "usual"),
    **{name: _load(name, "usual", "json", "writer") for name in ("heartbeat_slow", "update", "reap")},
    **{name: _load(name, "writer") for name in ("register", "deregister", "settle")},
}
