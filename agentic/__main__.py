"""The command `agentic`, or `python -m agentic`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line. If its dependencies are missing, print how to install them."""
    try:
        # Imported here because typer and rich are an extra, and because Ctrl-C may interrupt the slow imports.
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
        # While the interpreter shuts down, an interrupt would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
