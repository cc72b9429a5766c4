"""Shell completion of agent ids: bounded in time, without output on errors."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Final

import typer

from agentic.cli.chosen import existing
from agentic.cli.terminal import ends_within, without_log
from agentic.registry import AgentRegistry

SECONDS: Final = 2.0
"""Time limit of a completion."""

_SAFE: Final = re.compile(r"[\w.:@=+,/-]+", re.ASCII)
"""Ids with other characters are not offered: zsh evaluates completions."""

_SPLIT: Final = re.compile(r"[:=@]+")
"""Characters at which bash splits words."""


def agent_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids in the store that start with `incomplete`; nothing if it does not answer in time."""
    try:
        with ends_within(SECONDS), without_log():
            store = existing(ctx.params.get("url"), ctx.params.get("prefix"))
            return asyncio.run(_ids(store.with_options(timeout=SECONDS / 2).registry(), incomplete))
    except Exception:  # noqa: BLE001  never print an error into a shell prompt
        return []


async def _ids(registry: AgentRegistry, incomplete: str) -> list[str]:
    async with registry:
        ids = [agent.id for agent in await registry.list()]
    return sorted(agent_id for agent_id in ids if agent_id.startswith(incomplete) and _SAFE.fullmatch(agent_id))


@contextmanager
def whole_words_in_bash() -> Iterator[None]:
    """Undo bash's word splitting: it splits at `:`, `=` and `@`, and replaces only the last part."""
    if os.environ.get("_AGENTIC_COMPLETE") != "complete_bash":
        yield
        return
    words, last = _joined(os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"]))
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(last)}
    complete = words[last] if last < len(words) else ""
    kept = max((match.end() for match in _SPLIT.finditer(complete)), default=0)
    completions = io.StringIO()
    try:
        with redirect_stdout(completions):
            yield
    finally:
        for line in completions.getvalue().splitlines():
            typer.echo(line[kept:])


def _joined(parts: list[str], current: int) -> tuple[list[str], int]:
    """Join the parts into which bash split the words; return the words and the index of the current one."""
    words: list[str] = []
    glue, last = False, 0
    for number, part in enumerate(parts):
        is_split = _SPLIT.fullmatch(part) is not None
        if words and (glue or is_split):
            words[-1] += part
        else:
            words.append(part)
        glue = is_split
        if number <= current:
            last = len(words) - 1
    return words, last if current < len(parts) else len(words)
