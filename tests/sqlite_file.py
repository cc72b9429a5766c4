"""What the tests of SQLite share."""

from __future__ import annotations

from agentic import SQLiteRegistry


async def in_transaction(registry: SQLiteRegistry) -> bool:
    """Tell whether a registry's connection that writes has a transaction open, after what is under way."""
    writer = registry._open_database._writer
    assert writer is not None
    return await writer.connection.run(lambda job: job.db.in_transaction, 1)
