"""What users write does what its types say."""

from __future__ import annotations

from pathlib import Path

from tests.typical_use import main


async def test_what_users_write_runs_as_it_stands(tmp_path: Path) -> None:
    assert await main(tmp_path) == ["positional", "tuple"]
