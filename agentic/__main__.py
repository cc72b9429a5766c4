"""The command `agentic`, also `python -m agentic`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        # Imported here: typer and rich are an extra, and the imports take long enough to be interrupted.
        from agentic.cli.app import app  # noqa: PLC0415
        from agentic.cli.terminal import prepare_process  # noqa: PLC0415

        prepare_process()
        app()
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit('error: the command line needs an extra: pip install "agentic-registry[cli]"')
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Where the interpreter itself ends, an interrupt would show a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
