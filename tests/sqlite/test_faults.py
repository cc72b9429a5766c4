"""Faults of SQLite, each produced for real: how calls end, and that nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from agentic import (
    AgentInfo,
    BackendRejectedError,
    BackendUnavailableError,
    SQLiteRegistry,
)
from agentic.testing import wait_until
from tests.support.sqlite_file import integrity, killed_at_last, mounted, spawn, wait_until_unlocked


async def test_random_cancels_leave_no_transaction_open(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "r.db"
    async with SQLiteRegistry(path) as registry, SQLiteRegistry(path, timeout=1) as other:
        await registry.register(AgentInfo("a"))
        cancelled = 0
        while cancelled < 2_000:
            calls = [
                asyncio.ensure_future(call)
                for _ in range(5)
                for call in (
                    registry.register(AgentInfo(f"agent-{chance.randrange(50)}")),
                    registry.update("a", current_load=chance.randrange(100)),
                    registry.heartbeat("a"),
                    registry.reap(60),
                )
            ]
            await asyncio.sleep(chance.random() / 500)
            for call in chance.sample(calls, 20):
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            # Tasks that had ended before their cancellation do not count.
            cancelled += sum(call.cancelled() for call in calls)
        await wait_until_unlocked(registry.path)
        await other.register(AgentInfo("b"))
        assert (await registry.get("b")).id == "b"


async def test_twelve_processes_open_one_new_file_at_once(tmp_path: Path) -> None:
    # Forked from one process with everything imported, so that they start at the same time.
    script = """
        async def open_and_register(path, agent_id):
            async with SQLiteRegistry(path) as registry:
                await registry.register(AgentInfo(agent_id))

        for attempt in range(15):
            start, children = time.time() + 0.1, []
            for number in range(12):
                child = os.fork()
                if not child:
                    while time.time() < start: pass
                    asyncio.run(open_and_register(f"{sys.argv[1]}/{attempt}.db", f"agent-{number}"))
                    os._exit(0)
                children.append(child)
            codes = [os.waitpid(child, 0)[1] for child in children]
            assert codes == [0] * 12, codes
    """
    process = spawn(script, tmp_path)
    _, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error
    for attempt in range(15):
        async with SQLiteRegistry(tmp_path / f"{attempt}.db") as registry:
            assert len(await registry.list()) == 12


async def test_eight_processes_write_while_the_lock_holder_is_stopped_then_killed(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    writer = """
        async def main():
            done = 0
            told = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
            async with SQLiteRegistry(sys.argv[1], timeout=60) as registry:
                while not told.done():
                    await registry.register(AgentInfo(f"{sys.argv[2]}-{done}"))
                    done += 1
            print(done)
        asyncio.run(main())
    """
    holder = """
        import sqlite3
        db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
        db.execute("BEGIN IMMEDIATE")
        print("held", flush=True)
        time.sleep(600)
    """
    async with SQLiteRegistry(path, timeout=0.3) as registry:

        async def counts() -> Counter[str]:
            return Counter(agent.id.partition("-")[0] for agent in await registry.list())

        async def all_wrote(since: Counter[str]) -> bool:
            return len(await counts() - since) == 8

        with ExitStack() as spawned:
            writers = [spawned.enter_context(killed_at_last(spawn(writer, path, number))) for number in range(8)]
            await wait_until(lambda: all_wrote(Counter()), "all eight write")
            process = spawned.enter_context(killed_at_last(spawn(holder, path)))
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
            process.send_signal(signal.SIGSTOP)
            held = await counts()
            with pytest.raises(BackendUnavailableError):
                await registry.register(AgentInfo("late"))
            assert await counts() == held  # readers do not wait, and no process could write
            process.kill()
            await wait_until(lambda: all_wrote(held), "all eight write again")
            # `communicate` closes their input, which ends them.
            told = [await asyncio.to_thread(each.communicate) for each in writers]
        assert [each.returncode for each in writers] == [0] * 8, told
        assert await counts() == {str(number): int(done) for number, (done, _) in enumerate(told)}
        await registry.register(AgentInfo("late"))
    assert integrity(path) == "ok"


async def test_a_writer_killed_again_and_again_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    script = """
        async def main():
            async with SQLiteRegistry(sys.argv[1]) as registry:
                print("ready", flush=True)
                for number in range(100_000):
                    await registry.register(AgentInfo(f"{sys.argv[2]}-{number}"))
                    os.write(1, f"{sys.argv[2]}-{number}\\n".encode())
        asyncio.run(main())
    """
    chance = random.Random(11)
    acknowledged: set[str] = set()
    for life in range(20):
        process = spawn(script, path, life)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        await asyncio.sleep(chance.random() / 20)
        process.kill()
        told, _ = await asyncio.to_thread(process.communicate)
        acknowledged |= set(told.decode().split("\n")[:-1])
    assert len(acknowledged) > 20
    async with SQLiteRegistry(path) as registry:
        assert acknowledged <= {agent.id for agent in await registry.list()}
    assert integrity(path) == "ok"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 400 kB."""
    with mounted(tmp_path / "small", "size=400k") as allowed:
        if not allowed:
            pytest.skip("needs the right to mount a tmpfs: run as root")
        yield tmp_path / "small"


async def test_a_full_disk_is_rejected_until_space_is_freed(small_disk: Path) -> None:
    filler = small_disk / "filler"
    async with SQLiteRegistry(small_disk / "r.db") as registry:
        await registry.register(AgentInfo("a"))
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 1024)
        with pytest.raises(BackendRejectedError, match="free some disk space"):
            for number in range(2_000):
                await registry.register(AgentInfo(f"agent-{number}", name="x" * 500))
        assert (await registry.get("a")).id == "a"
        await wait_until_unlocked(registry.path)
        filler.unlink()
        await registry.register(AgentInfo("b"))
    assert integrity(small_disk / "r.db") == "ok"


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_deleted_or_replaced_file_is_an_error_and_lost_writes_are_not_acknowledged(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "r.db"
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
        if how == "deleted":
            path.unlink()
        else:
            (tmp_path / "other.db").touch()
            (tmp_path / "other.db").rename(path)
        for call in (registry.register(AgentInfo("b")), registry.heartbeat("a"), registry.list(), registry.reap(1)):
            with pytest.raises(BackendRejectedError, match="was deleted or replaced"):
                await call
        await registry.aclose()
        await registry.open()
        assert await registry.list() == []


@pytest.mark.parametrize("how", ["moved away", "a copy put back"])
async def test_calls_on_a_replaced_file_do_not_damage_the_new_one(tmp_path: Path, how: str) -> None:
    path = tmp_path / "r.db"
    old = [f"old-{number}" for number in range(300)]
    script = """
        async def main():
            async with SQLiteRegistry(sys.argv[1]) as registry:
                for number in range(500):
                    await registry.register(AgentInfo(f"new-{number}", name="x" * 200))
        asyncio.run(main())
    """
    async with SQLiteRegistry(path) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id, name="y" * 200)) for agent_id in old))
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    async with SQLiteRegistry(path) as registry:
        await registry.list()
        path.rename(tmp_path / "moved.db")
        if how == "a copy put back":
            copy.rename(path)
        # The other file takes over the log that the first has open: one write to it would corrupt both.
        other = spawn(script, path)
        ended = asyncio.ensure_future(asyncio.to_thread(other.communicate))
        while not ended.done():
            for agent_id in old[::10]:
                with pytest.raises(BackendRejectedError, match="was deleted or replaced"):
                    await registry.heartbeat(agent_id)
        assert other.returncode == 0, (await ended)[1]
    assert integrity(path) == "ok"
    async with SQLiteRegistry(path) as registry:
        found = {agent.id for agent in await registry.list()}
    assert found == {f"new-{number}" for number in range(500)} | (set(old) if how == "a copy put back" else set())


async def test_a_damaged_page_is_rejected(tmp_path: Path) -> None:
    path, damaged = tmp_path / "r.db", tmp_path / "damaged.db"
    ids = [f"agent-{n:04}" for n in range(500)]
    async with SQLiteRegistry(path) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id, name="x" * 200)) for agent_id in ids))
    sound, chance = path.read_bytes(), random.Random(3)
    # Each page in turn, except the first: without it, the file is not a database.
    for start in range(4096, len(sound), 4096):
        damaged.write_bytes(sound[:start] + chance.randbytes(4096) + sound[start + 4096 :])
        with pytest.raises(BackendRejectedError, match="it is damaged: stop every program"):
            async with SQLiteRegistry(damaged) as registry:
                # A scan of the table does not read damaged pages of the index.
                assert len(await registry.list()) == len(ids)
                await registry.heartbeat_many(ids)
                await registry.register(AgentInfo("new"))
        for suffix in ("-wal", "-shm"):
            damaged.with_name(damaged.name + suffix).unlink(missing_ok=True)


async def test_a_text_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes\n" * 100)
    with pytest.raises(BackendRejectedError, match="it is not a SQLite database: name another file"):
        await SQLiteRegistry(path).open()
    assert path.read_text() == "these are my notes\n" * 100


async def test_a_read_only_folder_is_rejected(tmp_path: Path) -> None:
    with mounted(tmp_path / "locked", "size=4m") as allowed:
        folder = tmp_path / "locked"
        if allowed:
            async with SQLiteRegistry(folder / "there.db") as registry:
                await registry.register(AgentInfo("a"))
            await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(folder)], check=True)
        elif os.geteuid() == 0:
            folder = Path("/proc")  # Root may write anywhere except where the kernel refuses.
        else:
            folder.chmod(0o555)
        for name in ("there.db", "new.db"):
            with pytest.raises(
                BackendRejectedError,
                match="check that its folder exists, and that the file and the folder are readable and writable",
            ):
                await SQLiteRegistry(folder / name).open()


async def test_a_process_that_does_not_close_exits_at_once_with_a_warning(tmp_path: Path) -> None:
    script = """
        registry = SQLiteRegistry(sys.argv[1])
        async def main():
            await registry.open()
            await registry.register(AgentInfo("a"))
        asyncio.run(main())
        print("done", flush=True)
    """
    with killed_at_last(spawn(script, tmp_path / "r.db")) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"done\n"
        # Detects a hang, does not measure speed: nothing is left to wait for.
        _, told = await asyncio.to_thread(process.communicate, timeout=2)
    assert process.returncode == 0
    assert b"ResourceWarning: unclosed SQLiteRegistry" in told
    async with SQLiteRegistry(tmp_path / "r.db") as registry:
        assert [agent.id for agent in await registry.list()] == ["a"]


async def test_a_forked_process_gets_an_error_that_names_the_fork(tmp_path: Path) -> None:
    script = """
        async def main():
            async with SQLiteRegistry(sys.argv[1]) as registry:
                child = os.fork()
                try:
                    await registry.list()
                except Exception as error:
                    print(type(error).__name__, error, flush=True)
                    os._exit(0)
                assert child
                os.waitpid(child, 0)
                await registry.register(AgentInfo("a"))
        asyncio.run(main())
    """
    process = spawn(script, tmp_path / "r.db")
    told, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error
    assert told == (
        b"RegistryClosedError the registry was opened before this process was forked: open one after the fork\n"
    )


async def test_a_busy_file_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    async with SQLiteRegistry(path, timeout=0.2) as registry:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(BackendUnavailableError):
                await registry.register(AgentInfo("a"))

        async def registered() -> bool:
            try:
                await registry.register(AgentInfo("a"))
            except BackendUnavailableError:
                return False
            return True

        await wait_until(registered, "the registry writes again")
