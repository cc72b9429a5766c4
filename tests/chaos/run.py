"""A run: start clients, inject faults in an order given by the seed, and check the history."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agentic.testing import wait_until
from tests.chaos.checker import Checker, Verdict
from tests.chaos.history import Journal, read_history
from tests.chaos.setting import INTERVAL, TIMEOUT, Setting
from tests.chaos.stores import STORES, ChaosStore, Fault, length


class Process:
    """A client's process."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        command = [sys.executable, "-W", "default", "-m", "tests.chaos.client", msgspec.json.encode(setting).decode()]
        self._log_path = Path(setting.folder) / f"{setting.who}.log"
        self._log = self._log_path.open("wb")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._log)
        self.killed = False

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return self.setting.journal.exists() and b'"ready"' in self.setting.journal.read_bytes()

    async def stop_for(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    async def kill(self, _seconds: float) -> None:
        self.killed = True
        self.process.kill()

    def log(self) -> str:
        return self._log_path.read_text()

    def ask_to_end(self) -> None:
        if not self.killed:
            self.process.terminate()

    def has_closed(self) -> bool:
        """Whether it has closed its registries or exited."""
        return self.process.poll() is not None or b'"ended"' in self.setting.journal.read_bytes()

    def let_end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.let_end()
        self.process.kill()
        self.process.wait()
        self._log.close()


async def run(
    store: str,
    seed: int,
    seconds: float,
    folder: Path,
    *,
    clients: int = 3,
    bug: str = "",
    log: Callable[[str], None] = print,
) -> Verdict:
    """Inject faults for this many seconds, write journals to the folder, and return the verdict on the history."""
    async with STORES[store](folder) as chosen:
        processes = []
        try:
            for number in range(clients):
                setting = Setting(f"client-{number}", await chosen.url(), str(folder), seed, bug=bug)
                processes.append(Process(setting))
            await _inject_faults(chosen, processes, random.Random(seed), seconds, folder, log)
        finally:
            for process in processes:
                process.close()
    return Checker(read_history(folder)).verdict()


async def _inject_faults(
    store: ChaosStore,
    processes: list[Process],
    chance: random.Random,
    seconds: float,
    folder: Path,
    log: Callable[[str], None],
) -> None:
    with Journal(folder / "runner.journal", "runner") as journal:
        for process in processes:
            await wait_until(process.is_ready, f"{process.setting.who} is ready", within=60)
        faults = _faults(store, processes)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(chance.uniform(0.2, 1.5))
            name = chance.choice(sorted(faults))
            lasts = length(chance)
            start = time.monotonic()
            log(f"{end - start:6.1f} s to go: {name}, {lasts:.1f} s")
            note = await faults[name](lasts)
            if note is not None:
                journal.note(note.kind, note.text, note.start, note.end)
            if "is killed for good" in name:
                del faults[name]
            journal.note("fault", name, start)
        journal.note("calm")
        await asyncio.sleep(2 * INTERVAL + 2 * TIMEOUT)
        for process in processes:
            process.ask_to_end()
        for process in processes:
            await wait_until(process.has_closed, f"{process.setting.who} has closed its registries", within=60)
        await _note_open_resources(store, [process.process.pid for process in processes], journal)
        for process in processes:
            process.let_end()
            await asyncio.to_thread(process.process.wait, 30)
            for line in process.log().splitlines():
                if "Traceback" in line or "Warning:" in line:
                    journal.note("left", process.log())


async def _note_open_resources(store: ChaosStore, pids: list[int], journal: Journal) -> None:
    """Note what the clients left open after closing their registries; they have not exited yet."""

    async def nothing() -> bool:
        return not await store.left_open(pids)

    try:
        await wait_until(nothing, "everything is closed", within=5)
    except AssertionError:
        journal.note("left", await store.left_open(pids))


def _faults(store: ChaosStore, processes: list[Process]) -> dict[str, Fault]:
    faults: dict[str, Fault] = dict(store.faults)
    first, *others = processes
    for process in others:
        faults[f"{process.setting.who} stops for a while"] = process.stop_for
    faults[f"{first.setting.who} is killed for good"] = first.kill
    return faults
