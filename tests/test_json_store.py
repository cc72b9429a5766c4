"""The example of a store of one's own keeps the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentic.testing import RegistryContract, StoreUnderTest
from examples.json_store import JSONRegistry


class JSONStore(StoreUnderTest):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make(self, **options: Any) -> JSONRegistry:
        return JSONRegistry(str(self.path), clock=self.clock, **options)

    async def corrupt(self, agent_id: str) -> None:
        records = json.loads(self.path.read_text(encoding="utf-8"))
        records[agent_id] = "damaged"
        self.path.write_text(json.dumps(records), encoding="utf-8")

    async def rewrite(self, agent_id: str, incarnation: object = None) -> None:
        records = json.loads(self.path.read_text(encoding="utf-8"))
        stored = records[agent_id]
        stored.pop("before_offline", None)
        stored["agent"]["unready"] = ""
        stored["incarnation"] = 0 if incarnation is None else incarnation
        self.path.write_text(json.dumps(records), encoding="utf-8")


class TestJSONStore(RegistryContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> JSONStore:
        return JSONStore(tmp_path / "fleet.json")
