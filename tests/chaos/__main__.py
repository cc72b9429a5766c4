"""`python -m tests.chaos`: inject random faults; the same seed gives the same faults in the same order."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.recorded import BUGS
from tests.chaos.run import run
from tests.chaos.stores import STORES


def main() -> None:
    """Run the command; exit with 1 if a guarantee was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--store", choices=sorted(STORES), action="append", help="the store; both by default")
    parser.add_argument("--seed", type=int, help="replay the faults of this seed")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="the number of seeds, from 1 on (3)")
    parser.add_argument("--seconds", type=float, default=40, metavar="S", help="the duration of each run (40)")
    parser.add_argument("--bug", choices=sorted(BUGS), default="", help="put an old bug back; Redis only")
    parser.add_argument("--quiet", action="store_true", help="do not print each fault")
    options = parser.parse_args()
    broken = 0
    for seed in range(1, options.seeds + 1) if options.seed is None else [options.seed]:
        for store in options.store or sorted(STORES):
            start = time.monotonic()
            folder = Path(tempfile.mkdtemp(prefix=f"agentic-chaos-{store}-{seed}-"))
            log = _quiet if options.quiet else print
            verdict = asyncio.run(run(store, seed, options.seconds, folder, bug=options.bug, log=log))
            claims = sum(verdict.tried.values())
            print(
                f"{store}, seed {seed}: {claims:,} claims, {len(verdict.wrong)} broken, {time.monotonic() - start:.0f} s"
            )
            for name, count in sorted(verdict.tried.items()):
                print(f"  {count:9,} {name}")
            for line in verdict.wrong[:20]:
                print(f"  BROKEN {line}")
            if verdict.wrong:
                broken += 1
                print(f"  history: {folder}")
            else:
                shutil.rmtree(folder)
            sys.stdout.flush()
    sys.exit(1 if broken else 0)


def _quiet(_line: str) -> None:
    pass


if __name__ == "__main__":
    main()
