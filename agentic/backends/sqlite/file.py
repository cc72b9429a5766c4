"""A registry's file: which paths are valid, who may read it, and whether it is still the file that was opened."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from pathlib import Path
from typing import Final
from urllib.parse import quote

from agentic.errors import BackendRejectedError

DEFAULT_PATH: Final = "~/.config/agentic/registry.db"
LOG_SUFFIXES: Final = ("-wal", "-shm")

_MOUNTS: Final = Path("/proc/self/mountinfo")

logger = logging.getLogger("agentic.sqlite")


class DatabaseFile:
    """A registry's file, addressed by its path.

    Only SQLite opens it: closing any file descriptor of a file drops all POSIX locks of the process on it, and without
    SQLite's locks another process may delete the log in use.
    """

    def __init__(self, path: str) -> None:
        """Resolve the path now: the working directory may change later.

        Raises:
            BackendRejectedError: It is the default path, and the user has no home directory.
        """
        self._path = path
        self._private = path == DEFAULT_PATH
        self.name = _default_name() if self._private else os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118  as given
        self._identities: dict[str, tuple[int, int] | None] = {}

    def connect(self, *, create: bool) -> sqlite3.Connection:
        """Return a new connection; with `create`, create a missing file.

        Raises:
            BackendRejectedError: The path does not name a usable file.
            sqlite3.Error: SQLite cannot open it.
        """
        if self._private and create:
            self._make_private_folder()
        self._check_name(create)
        # A URI with the path quoted: SQLite would interpret some plain paths as URIs.
        uri = f"file://{quote(os.fsencode(self.name))}?mode={'rwc' if create else 'rw'}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0)
        if self._private and create:
            for suffix in ("", *LOG_SUFFIXES):
                _make_private(self.name + suffix)
        return db

    def remember(self, *, has_log: bool) -> None:
        """Store the identity of the file and its log, for `check` to compare with."""
        real = os.path.realpath(self.name)  # SQLite puts the log next to the target of a symbolic link.
        names = [self.name, *(real + suffix for suffix in LOG_SUFFIXES if has_log)]
        self._identities = {name: _identity(name) for name in names}

    def check(self) -> None:
        """Check that the file and its log were not deleted or replaced: writes to them would be lost.

        Raises:
            BackendRejectedError: One of them was.
        """
        for name, identity in self._identities.items():
            if _identity(name) != identity:
                raise BackendRejectedError(
                    f"the file {name!r} was deleted or replaced while it was open: open the registry again"
                )

    def other_names(self) -> str:
        """Return why the file may have a second name; empty if it has only one.

        The log is named after the name by which the file was opened. Programs that open it by different names use
        different logs and lose each other's writes.
        """
        real = os.path.realpath(self.name)
        links = os.stat(real).st_nlink  # noqa: PTH116
        if links > 1:
            return f"it has {links} names (hard links): remove the others, or copy it"
        if _is_mount_point(real):
            return "it is mounted as a single file: mount its folder instead"
        return ""

    def _check_name(self, create: bool) -> None:
        try:
            mode = os.stat(self.name).st_mode  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            folder = os.path.dirname(self.name)  # noqa: PTH120
            if not os.path.isdir(folder) and not self._private:  # noqa: PTH112
                raise self._refused(f"its folder {folder!r} does not exist: create it first") from None
            if not create:
                raise BackendRejectedError(
                    f"there is no file {self._path!r}: registering the first agent creates it"
                ) from None
            return
        if stat.S_ISDIR(mode):
            raise self._refused("it is a directory: name a file")
        if not stat.S_ISREG(mode):
            raise self._refused("it is not a regular file")
        if reason := self.other_names():
            raise self._refused(reason)

    def _refused(self, reason: str) -> BackendRejectedError:
        return BackendRejectedError(f"failed to open {self._path!r}: {reason}")

    def _make_private_folder(self) -> None:
        folder = Path(self.name).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(str(folder))


def _default_name() -> str:
    try:
        return str(Path(DEFAULT_PATH).expanduser())
    except RuntimeError as error:
        raise BackendRejectedError(f"failed to open {DEFAULT_PATH!r}: {error} Set HOME, or name a path") from error


def _make_private(name: str) -> None:
    """Remove all permissions on a file or folder for everybody but its owner."""
    try:
        mode = stat.S_IMODE(os.stat(name).st_mode)  # noqa: PTH116
        if mode & 0o077:
            os.chmod(name, mode & 0o700)  # noqa: PTH101
    except FileNotFoundError:
        pass
    except PermissionError as error:
        logger.warning("users other than the owner may read %r: %s", name, error)


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)  # noqa: PTH116  twice as fast as Path.stat; runs in every job
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _is_mount_point(name: str) -> bool:
    # Comparing devices does not work: a mount may be on the same device, and overlay file systems show several.
    try:
        mounts = _MOUNTS.read_bytes()
    except OSError:
        return False
    escaped = os.fsencode(name)
    for byte in (b"\\", b" ", b"\t", b"\n"):
        escaped = escaped.replace(byte, b"\\%03o" % ord(byte))
    return any(line.split(b" ")[4] == escaped for line in mounts.splitlines())
