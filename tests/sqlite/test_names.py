"""The names by which a SQLite file may be opened, and changes to the file or its log while it is open."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from agentic import AgentInfo, BackendRejectedError, ConfigurationError, SQLiteRegistry, open_registry
from agentic.findings import Finding, Level
from tests.support.sqlite_file import integrity, seen_by_another_process, spawn

DEFAULT = Path(".config/agentic/registry.db")


def ids(agents: list[AgentInfo]) -> set[str]:
    return {agent.id for agent in agents}


# --- several registries of one process keep its locks on the file ---


@asynccontextmanager
async def two_registries(path: Path | None) -> AsyncIterator[tuple[SQLiteRegistry, SQLiteRegistry, Path]]:
    """Open two registries on a named file or the default one; the test may close the second."""
    async with SQLiteRegistry(path) as one:
        other = SQLiteRegistry(path)
        await other.open()
        try:
            yield one, other, path or Path.home() / DEFAULT
        finally:
            await other.aclose()


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("then", ["opened", "examined", "closed", "refused"])
async def test_a_second_registry_of_a_process_keeps_the_locks_of_the_first(
    path: Path, default: bool, then: str
) -> None:
    async with two_registries(None if default else path) as (one, other, file):
        await one.register(AgentInfo("before"))
        if then == "examined":
            assert all([finding.level is not Level.BAD async for finding in other.diagnose()])
        elif then == "closed":
            await other.aclose()
        elif then == "refused":
            second = file.with_name("second.db")
            os.link(file, second)
            with pytest.raises(BackendRejectedError):
                await SQLiteRegistry(second).open()
            second.unlink()
        # Without the locks, the other process would consider itself the last to close, and delete the log in use.
        assert await seen_by_another_process(file) == {"before"}
        assert file.with_name(file.name + "-wal").exists()
        await one.register(AgentInfo("after"))
        assert await seen_by_another_process(file) == {"before", "after"}


@pytest.mark.parametrize("default", [False, True])
async def test_two_registries_of_a_process_lose_nothing_alongside_other_processes(path: Path, default: bool) -> None:
    script = """
        async def main():
            for number in range(10):
                async with SQLiteRegistry(sys.argv[1] or None, timeout=20) as registry:
                    await registry.register(AgentInfo(f"{sys.argv[2]}-{number}", name="x" * 500))
        asyncio.run(main())
    """
    async with two_registries(None if default else path) as (one, other, file):
        processes = [spawn(script, "" if default else file, number) for number in range(2)]
        ended = asyncio.gather(*(asyncio.to_thread(process.communicate) for process in processes))
        expected = {f"{process}-{number}" for process in range(2) for number in range(10)}
        turn = 0
        while not ended.done():
            for name, registry in (("one", one), ("other", other)):
                expected.add((await registry.register(AgentInfo(f"{name}-{turn}", name="x" * 500))).id)
            turn += 1
        assert [process.returncode for process in processes] == [0, 0], await ended
        assert await seen_by_another_process(file) == expected
    assert integrity(file) == "ok"


# --- a log that is deleted or replaced ---


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_without_its_log_a_registry_acknowledges_nothing(tmp_path: Path, suffix: str, how: str) -> None:
    path = tmp_path / "real" / "r.db"
    path.parent.mkdir()
    (tmp_path / "link.db").symlink_to(path)
    # The log is next to the target of the link.
    async with SQLiteRegistry(tmp_path / "link.db") as registry:
        await registry.register(AgentInfo("a"))
        log = path.with_name(path.name + suffix)
        if how == "deleted":
            log.unlink()
        else:
            log.rename(tmp_path / "away")
            log.touch()
        for call in (
            registry.register(AgentInfo("b")),
            registry.heartbeat("a"),
            registry.update("a", name="x"),
            registry.get("a"),
            registry.list(),
            registry.reap(1),
            registry.flush(),
        ):
            with pytest.raises(BackendRejectedError, match=f"r.db{suffix}' was deleted or replaced"):
                await call
        await registry.aclose()
        await registry.open()
        await registry.register(AgentInfo("b"))
        assert "b" in await seen_by_another_process(path)


# --- one file under two names ---


async def test_a_file_with_a_hard_link_is_refused(tmp_path: Path, path: Path) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
    os.link(path, tmp_path / "second.db")
    before = path.read_bytes()
    for name in ("r.db", "second.db"):
        for create in (True, False):
            with pytest.raises(
                BackendRejectedError, match=rf"{name}': it has 2 names \(hard links\): remove the others"
            ):
                await SQLiteRegistry(tmp_path / name, create=create).open()
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.db", "second.db"]
    (tmp_path / "second.db").unlink()
    async with SQLiteRegistry(path) as registry:
        assert ids(await registry.list()) == {"a"}


async def test_a_hard_link_made_while_the_file_is_open_is_found_by_the_doctor(tmp_path: Path, path: Path) -> None:
    async with SQLiteRegistry(path) as registry:
        assert Finding(Level.OK, "names", "one") in [finding async for finding in registry.diagnose()]
        os.link(path, tmp_path / "second.db")
        found = {finding.subject: finding async for finding in registry.diagnose()}
    assert found["names"].level is Level.BAD
    assert "2 names" in found["names"].found


@pytest.fixture
def mounted_file(tmp_path: Path) -> Iterator[Path]:
    """A second name of `r.db`, by a mount of that single file."""
    (tmp_path / "r.db").touch()
    place = tmp_path / "a container"  # The kernel writes the space as \\040.
    place.mkdir()
    name = place / "fleet.db"
    name.touch()
    mount = ["mount", "--bind", str(tmp_path / "r.db"), str(name)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file: run as root")
    try:
        yield name
    finally:
        subprocess.run(["umount", "-l", str(name)], check=True)


async def test_a_file_mounted_by_itself_is_refused(path: Path, mounted_file: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(mounted_file)
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
        for name in (mounted_file, link):
            with pytest.raises(BackendRejectedError, match="it is mounted as a single file: mount its folder instead"):
                await SQLiteRegistry(name).open()
        assert [each.name for each in mounted_file.parent.iterdir()] == ["fleet.db"]
        assert await seen_by_another_process(path) == {"a"}


async def test_symbolic_links_share_the_file_that_they_name(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path)
    (tmp_path / "link.db").symlink_to("r.db")
    names = (path, tmp_path / "link.db", folder / "r.db", folder / "link.db")
    for name in names:
        async with SQLiteRegistry(path) as registry, SQLiteRegistry(name) as other:
            await asyncio.gather(registry.register(AgentInfo("a")), other.register(AgentInfo(str(name))))
            assert ids(await registry.list()) == ids(await other.list())
    assert await seen_by_another_process(path) == {"a", *map(str, names)}


@pytest.mark.parametrize("create", [True, False])
async def test_a_special_file_is_refused(tmp_path: Path, create: bool) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, reason in (
            (tmp_path / "folder", "it is a directory: name a file"),
            (tmp_path / "pipe", "it is not a regular file"),
            (tmp_path / "socket", "it is not a regular file"),
            (Path("/dev/null"), "it is not a regular file"),
        ):
            # Detects a hang: opening a pipe would block.
            async with asyncio.timeout(20):
                with pytest.raises(BackendRejectedError, match=reason):
                    await SQLiteRegistry(name, create=create).open()


# --- names with a special meaning to SQLite or the shell ---

ODD_NAMES = [
    "file:x.db", "file:x.db?mode=memory", "file::memory:?cache=shared", ":memory:.db", " :memory:", ":memory: ", "a b?c#d&e=f;g+h.db",
    "a%41.db", "%00x.db", "'quote\".db", "-dash.db", "~", "$HOME.db", "a\nb.db", "a\tb.db", "a\\b.db", "ä漢😀.db", os.fsdecode(b"\xff\xfe.db"),
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
@pytest.mark.parametrize("how", ["absolute", "relative", "URL", "relative URL"])
async def test_a_path_is_taken_literally(tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if how == "absolute":
        registry = SQLiteRegistry(tmp_path / name)
    elif how == "relative":
        registry = SQLiteRegistry(name)
    else:
        folder = "" if how == "relative URL" else f"{quote(str(tmp_path))}/"
        url = f"sqlite:///{folder}{quote(os.fsencode(name))}"
        if not name.isprintable():
            with pytest.raises(ConfigurationError, match="printable"):
                open_registry(url)
            return
        made = open_registry(url)
        assert isinstance(made, SQLiteRegistry)
        registry = made
    async with registry:
        await registry.register(AgentInfo("a"))
        files = {each.name for each in tmp_path.iterdir()}
        assert files == {name + suffix for suffix in ("", "-wal", "-shm")}
        monkeypatch.chdir("/")  # A relative path is resolved when the registry is opened.
        assert ids(await registry.list()) == {"a"}
    assert [each.name for each in tmp_path.iterdir()] == [name]
