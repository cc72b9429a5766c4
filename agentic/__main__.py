"""The command `agentic`, also `python -m agentic`."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        from agentic.cli import app  # noqa: PLC0415  typer and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit('error: the command line needs an extra: pip install "agentic-registry[cli]"')
    # A terminal that cannot show a character shows its code.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
