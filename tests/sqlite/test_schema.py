"""Tables `agents` on which calls would not work as documented: refused at open, and when altered later."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentic import AgentInfo, BackendRejectedError, SQLiteRegistry
from tests.support.sqlite_file import COLUMNS, TABLE_WITHOUT_CONSTRAINTS

REFUSED = {
    "a view": ("CREATE VIEW agents AS SELECT 1 AS id", "a view or a virtual table"),
    "a virtual table": ("CREATE VIRTUAL TABLE agents USING fts5 (id)", "a view or a virtual table"),
    "no key": (f"CREATE TABLE agents (id TEXT, {COLUMNS})", "its primary key is not 'id'"),
    "a key of two columns": (f"CREATE TABLE agents (id TEXT, {COLUMNS}, PRIMARY KEY (id, name))", "its primary key is not 'id'"),
    "another key": (f"CREATE TABLE agents (id TEXT, {COLUMNS}, x PRIMARY KEY)", "its primary key is not 'id'"),
    "a key of numbers": (f"CREATE TABLE agents (id INTEGER PRIMARY KEY, {COLUMNS})", "column id does not keep what is written"),
    "a key without case": (f"CREATE TABLE agents (id TEXT PRIMARY KEY COLLATE NOCASE, {COLUMNS})", "it has a collation"),
    "no rowids": (f"{TABLE_WITHOUT_CONSTRAINTS} WITHOUT ROWID", "it has no rowids"),
    "a column named rowid": (f"CREATE TABLE agents (id TEXT PRIMARY KEY, {COLUMNS}, rowid TEXT)", "a column named rowid"),
    "a missing column": (TABLE_WITHOUT_CONSTRAINTS.replace("max_load INTEGER, ", ""), "no column max_load"),
    "text as numbers": (TABLE_WITHOUT_CONSTRAINTS.replace("name TEXT", "name INTEGER"), "column name does not keep what is written"),
    "loads as floats": (TABLE_WITHOUT_CONSTRAINTS.replace("max_load INTEGER", "max_load REAL"), "column max_load does not keep what is written"),
    "a computed column": (TABLE_WITHOUT_CONSTRAINTS.replace("name TEXT", "name TEXT AS (id)"), "column name does not keep what is written"),
    "a column that needs a value": (TABLE_WITHOUT_CONSTRAINTS.replace("name TEXT", "name TEXT, theirs TEXT NOT NULL"), "column theirs needs a value"),
    "expiries for all": (TABLE_WITHOUT_CONSTRAINTS.replace("name TEXT", "name TEXT, expires_at TEXT NOT NULL"), "column expires_at must allow NULL"),
    "unique names": (TABLE_WITHOUT_CONSTRAINTS.replace("name TEXT", "name TEXT UNIQUE"), "its unique index"),
}  # fmt: skip
ALTERATIONS = {
    "dropped": ("DROP TABLE agents", "there is no such table"),
    "renamed": ("ALTER TABLE agents RENAME TO other", "there is no such table"),
    "a column dropped": ("ALTER TABLE agents DROP COLUMN metadata", "no column metadata"),
    "a column renamed": ("ALTER TABLE agents RENAME COLUMN name TO title", "no column name"),
    "a newer release's": (
        "BEGIN; ALTER TABLE agents ADD COLUMN new; PRAGMA user_version = 99; COMMIT",
        "schema version 99",
    ),
    "a unique index": ("CREATE UNIQUE INDEX theirs ON agents (name)", "its unique index theirs"),
    "a trigger": ("CREATE TRIGGER t BEFORE UPDATE ON agents BEGIN SELECT RAISE(IGNORE); END", "it has triggers"),
}


@pytest.mark.parametrize(("sql", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("create", [True, False])
async def test_a_strange_table_is_refused_and_left_alone(path: Path, sql: str, reason: str, create: bool) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(sql)
    before = path.read_bytes()
    with pytest.raises(BackendRejectedError, match=f"the file's table 'agents' is not an agent registry's: .*{reason}"):
        await SQLiteRegistry(path, create=create).open()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("sql", "reason"), ALTERATIONS.values(), ids=ALTERATIONS)
async def test_a_table_that_is_altered_while_it_is_open_is_an_error_of_every_call(
    path: Path, raw: sqlite3.Connection, sql: str, reason: str
) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
        await registry.list()
        raw.executescript(sql)
        for call in (
            registry.register(AgentInfo("b")),
            registry.heartbeat("a"),
            registry.update("a", current_load=3),
            registry.get("a"),
            registry.list(),
            registry.reap(0),
            registry.flush(),
            registry.deregister("a"),
        ):
            with pytest.raises(BackendRejectedError, match=reason):
                await call


async def test_a_column_added_while_the_table_is_open_breaks_no_call(path: Path, raw: sqlite3.Connection) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
        raw.execute("ALTER TABLE agents ADD COLUMN theirs TEXT DEFAULT 'kept'")
        raw.execute("CREATE INDEX by_name ON agents (name)")
        await asyncio.gather(registry.register(AgentInfo("b")), registry.update("a", name="x"), registry.heartbeat("a"))
        assert {agent.id: agent.name for agent in await registry.list()} == {"a": "x", "b": ""}
    assert raw.execute("SELECT id, theirs FROM agents ORDER BY id").fetchall() == [("a", "kept"), ("b", "kept")]
