"""The examples for other frameworks, run as they stand: `nox -s frameworks`, where these are installed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from litestar.testing import TestClient

from agentic.testing import RedisServer
from tests.support.documents import ROOT, run_python

EXAMPLES = ROOT / "examples" / "frameworks"


def test_the_langgraph_router_gives_jobs_to_those_who_can_do_them(tmp_path: Path) -> None:
    printed = run_python(str(EXAMPLES / "langgraph_router.py"), cwd=tmp_path)
    assert printed.splitlines() == [
        "coder-1 did the parser",
        "writer-1 did the report",
        "no live agent can do the query",
    ]


def test_the_openai_agent_asks_the_registry(tmp_path: Path) -> None:
    printed = run_python(str(EXAMPLES / "openai_agents_tool.py"), cwd=tmp_path)
    assert printed.splitlines() == ["the registry said: coder-1", "the agent said: coder-1 can do it."]


def test_the_litestar_application_serves_the_fleet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str
) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/app.db", f"{redis_url}?prefix=test-litestar"):
        monkeypatch.setenv("AGENTIC_URL", url)
        app = runpy.run_path(str(EXAMPLES / "litestar_app.py"))["app"]
        with TestClient(app) as client:
            (agent,) = client.get("/agents").json()
            assert agent["capabilities"] == ["http"]
            assert client.get(f"/agents/{agent['id']}").json()["id"] == agent["id"]
            assert client.get("/agents/ghost").status_code == 404
            assert client.get("/agents/ghost").json() == {"detail": "agent not found: ghost"}
            schemas = client.get("/schema/openapi.json").json()["components"]["schemas"]
            assert "last_heartbeat" in schemas["AgentInfo"]["properties"]


def test_the_litestar_application_answers_with_the_code_of_the_error(
    monkeypatch: pytest.MonkeyPatch, own_redis_server: RedisServer
) -> None:
    monkeypatch.setenv("AGENTIC_URL", own_redis_server.url)
    app = runpy.run_path(str(EXAMPLES / "litestar_app.py"))["app"]
    with TestClient(app) as client:
        own_redis_server.stop()
        assert client.get("/agents").status_code == 503
        own_redis_server.start()
