"""The example for crewai, which takes a gigabyte: `nox -s crewai`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.documents import ROOT


def test_a_crew_in_a_thread_does_not_hold_up_the_heartbeats(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "frameworks" / "crewai_crew.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTIC_")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["forty-two agents", "heartbeats went on: True"]
