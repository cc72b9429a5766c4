"""The examples, run as they stand, and the code in the pages."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from agentic import AgentInfo, open_registry
from agentic.testing.servers import RedisServer, free_port
from examples import fastapi_app
from tests.support.documents import ROOT, run_python

PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("index", "quickstart", "embed", "observe"))]


def blocks(*pages: Path) -> list[Any]:
    """Every block of Python code in the pages that are meant to be typed in."""
    found = []
    for page in pages:
        code = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [pytest.param(each, id=f"{page.name}-{number}") for number, each in enumerate(code, 1)]
    return found


def test_the_worker_ends_by_itself(tmp_path: Path) -> None:
    printed = run_python(str(ROOT / "examples" / "worker.py"), cwd=tmp_path)
    assert printed.splitlines() == [*(f"item {n} done" for n in range(1, 6)), "0 items left"]


class Worker:
    """The worker with many items to work off, in a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        text = (ROOT / "examples" / "worker.py").read_text(encoding="utf-8")
        (folder / "worker.py").write_text(text.replace("range(1, 6)", "range(1, 31)"), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-W", "error", str(folder / "worker.py")],
            env={**os.environ, "AGENTIC_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed: list[str] = []

    def read_until(self, part: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            if part in line:
                return
        raise AssertionError(f"{part!r} was not printed: {self.printed}")

    def wait(self) -> list[str]:
        """Wait for its end, and return all that it has printed and logged."""
        out, _ = self.process.communicate(timeout=60)
        self.printed += out.splitlines()
        assert self.process.returncode == 0, self.printed
        assert not any("Traceback" in line for line in self.printed), self.printed
        return self.printed


def test_the_worker_waits_for_a_late_store_and_survives_one_that_is_away(tmp_path: Path) -> None:
    with RedisServer() as server:
        server.stop()
        worker = Worker(tmp_path, server.url)
        worker.read_until("opening the registry: the store failed; retrying")
        server.start()
        worker.read_until("item 3 done")
        server.stop()
        worker.read_until("not reported")
        server.start()
        printed = worker.wait()
    assert sum("done" in line for line in printed) == 30


def test_the_worker_that_waits_for_its_store_ends_when_it_is_told_to_stop(tmp_path: Path) -> None:
    worker = Worker(tmp_path, f"redis://127.0.0.1:{free_port()}")
    worker.read_until("opening the registry: the store failed; retrying")
    worker.process.send_signal(signal.SIGTERM)
    assert not any("left" in line for line in worker.wait())


def test_the_worker_survives_a_store_that_is_away_when_it_ends(tmp_path: Path) -> None:
    with RedisServer() as server:
        worker = Worker(tmp_path, server.url)
        worker.read_until("item 1 done")
        server.stop()
        printed = worker.wait()
    assert sum("done" in line for line in printed) == 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_worker_leaves_after_the_item_in_hand_when_it_is_told_to_stop(
    number: signal.Signals, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    worker = Worker(tmp_path, url)
    worker.read_until("item 1 done")
    worker.process.send_signal(number)
    assert sum("done" in line for line in worker.wait()) < 30

    async def left() -> list[AgentInfo]:
        async with open_registry(url) as registry:
            return await registry.list()

    assert asyncio.run(left()) == []


def test_the_fastapi_application_serves_the_fleet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str
) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/app.db", f"{redis_url}?prefix=test-fastapi"):
        monkeypatch.setenv("AGENTIC_URL", url)
        with TestClient(fastapi_app.app) as client:
            (agent,) = client.get("/agents").json()
            assert agent["id"].startswith("gateway-")
            assert agent == client.get(f"/agents/{agent['id']}").json()
            assert client.post(f"/agents/{agent['id']}/heartbeat").status_code == 204
            assert client.get(f"/agents/{agent['id']}").json()["last_heartbeat"] > agent["last_heartbeat"]
            assert client.get("/health").json() == {"healthy": True, "unready": ""}
            described = client.get("/openapi.json").json()["paths"]["/agents/{agent_id}"]["get"]["responses"]["200"]
            assert "last_heartbeat" in json.dumps(described)
            assert client.get("/agents/ghost").status_code == 404
            assert client.post("/agents/ghost/heartbeat").json() == {"detail": "agent not found: ghost"}
            assert client.get("/agents/" + "x" * 600).status_code == 400


def test_the_fastapi_application_answers_with_the_code_of_the_error(
    monkeypatch: pytest.MonkeyPatch, own_redis_server: RedisServer
) -> None:
    monkeypatch.setenv("AGENTIC_URL", own_redis_server.url)
    with TestClient(fastapi_app.app) as client:
        own_redis_server.stop()
        assert client.get("/agents").status_code == 503
        own_redis_server.start()


@pytest.mark.parametrize("code", blocks(*PAGES))
def test_the_code_in_the_pages_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    run_python(str(script), cwd=tmp_path)


@pytest.mark.parametrize("code", blocks(ROOT / "docs" / "testing.md"))
def test_the_tests_in_the_pages_pass_as_they_stand(code: str, tmp_path: Path) -> None:
    (tmp_path / "test_page.py").write_text(code, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n",
        encoding="utf-8",
    )
    printed = run_python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey", "test_page.py", cwd=tmp_path
    )
    assert " passed" in printed


def test_every_relative_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 10
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
