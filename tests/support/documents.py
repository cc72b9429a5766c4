"""Documentation and other files of the repository that tests read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GO_RECORDS = (ROOT / "tests" / "data" / "go-records.jsonl").read_text(encoding="utf-8").splitlines()
"""Records as the Go original writes them."""


def page(name: str) -> str:
    """Return the text of a page of the documentation."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def documented_acl(user: str = "agentic") -> list[str]:
    """Return the words of the documented command that creates a user with least privileges."""
    (command,) = re.findall(rf"^(ACL SETUSER {user} .*)$", page("operations.md"), re.MULTILINE)
    return str(command).split()


def run_python(*arguments: str, cwd: Path, fails: bool = False) -> str:
    """Run Python with warnings as errors and without AGENTIC_* variables; return its output.

    With `fails`, it must end with exit code 1.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTIC_")}
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == fails, done.stdout + done.stderr
    assert fails or not done.stderr
    return done.stdout
