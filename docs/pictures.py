"""`python docs/pictures.py`: draw `assets/fleet.svg`, what `agentic ls` prints of a small fleet on a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Final

from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from agentic import AgentInfo, AgentStatus, SQLiteRegistry

WIDTH: Final = 84
ROOT: Final = Path(__file__).parent.parent
PICTURE: Final = ROOT / "docs" / "assets" / "fleet.svg"


async def fill(path: Path) -> None:
    """Register five agents and mark the one offline that is silent for longer than 30 s."""
    now = datetime.now(UTC)
    agents = [
        (2, AgentInfo("planner-1", "Planner", ("plan",), max_load=4)),
        (5, AgentInfo("coder-1", "Coder", ("python", "review"), AgentStatus.BUSY, current_load=3, max_load=3)),
        (1, AgentInfo("coder-2", "Coder", ("python", "sql"), AgentStatus.BUSY, current_load=1, max_load=3)),
        (8, AgentInfo("search-1", "Search", ("search",))),
        (95, AgentInfo("writer-1", "Writer", ("write", "translate"), max_load=2)),
    ]
    async with SQLiteRegistry(path) as registry:
        for silence, agent in agents:
            await registry.register(replace(agent, last_heartbeat=now - timedelta(seconds=silence)))
        await registry.reap(30)


def printed(folder: Path) -> str:
    """Return what the command prints on a terminal."""
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, WIDTH))
    environment = os.environ | {
        "AGENTIC_URL": "sqlite:///fleet.db",
        "COLORTERM": "truecolor",
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
    }
    command = [sys.executable, "-m", "agentic", "ls"]
    subprocess.run(command, cwd=folder, env=environment, stdout=its_end, stderr=its_end, check=True)
    os.close(its_end)
    text = b""
    with suppress(OSError):  # So Linux says that the other end is closed.
        while part := os.read(terminal, 65_536):
            text += part
    os.close(terminal)
    return text.decode().replace("\r\n", "\n")


def main() -> None:
    """Draw the picture."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(fill(Path(folder) / "fleet.db"))
        text = printed(Path(folder))
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(Text("$ agentic ls", style="bold"))
    console.print(Text.from_ansi(text))
    svg = console.export_svg(title="the fleet", unique_id="fleet")
    # A picture in a page may load no font: it is drawn with the reader's own.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code,", "")
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
