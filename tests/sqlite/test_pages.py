"""Pages of a SQLite file with rows written or moved by other programs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentic import AgentInfo, SQLiteRegistry
from agentic.testing.contract.base import fill
from agentic.testing.contract.pages import paged_ids


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_rows_with_an_id_that_is_not_text_are_counted_once_and_end_no_walk(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "registry.db"
    async with SQLiteRegistry(path) as registry:
        await registry.backend.insert([AgentInfo("a"), AgentInfo("b"), AgentInfo("c")])
        with closing(sqlite3.connect(path)) as db, db:
            for value in ("NULL", "x'00'", "x'ff'", "CAST(x'61ff' AS TEXT)", "CAST(x'ff61' AS TEXT)"):
                db.execute(f"INSERT INTO agents (id, last_heartbeat) VALUES ({value}, '2026-02-20T11:41:00.000000Z')")
        assert await paged_ids(registry, limit) == ["a", "b", "c"]
        assert registry.corrupt_records == 5
        assert len(await registry.list()) == 3
        assert registry.corrupt_records == 10


async def test_a_row_moved_by_a_vacuum_is_returned_once(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with SQLiteRegistry(path) as registry:
        ids = sorted(await fill(registry, 100))
        page = await registry.page(limit=40)
        for agent_id in ids[10:60]:
            await registry.deregister(agent_id)
        with closing(sqlite3.connect(path)) as db:
            db.execute("VACUUM")
        assert [agent.id for agent in (await registry.page(page.cursor)).agents] == ids[60:]
