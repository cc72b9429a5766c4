"""Stores of other distributions, installed beside this one: found by their entry points, and complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentic import (
    AgentInfo,
    AgentRegistry,
    ConfigurationError,
    MemoryRegistry,
    RegistryConfig,
    SQLiteRegistry,
    open_registry,
)
from agentic.cli.app import app
from agentic.stores import GROUP, OWN, store_class
from tests.support.documents import ROOT

FOLDERS = """
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from agentic import AgentRegistry
from agentic.backends.sqlite.backend import SQLiteBackend
from agentic.findings import Finding, Level


class FolderBackend(SQLiteBackend):
    def __init__(self, folder, fleet, **options):
        super().__init__(f"{folder}/{fleet}.db", **options)
        self.folder, self.fleet = folder, fleet

    @property
    def store(self):
        return f"folder:///{self.folder}?fleet={self.fleet}"

    async def diagnose(self, cursor):
        return [Finding(Level.OK, "folder", "has a fleet named " + self.fleet)], None


class FolderRegistry(AgentRegistry):
    def __init__(
        self,
        folder: str,
        *,
        fleet: str = "main",
        copies: int | None = None,
        pause: float = 1.0,
        strict: bool = False,
        token: str | None = None,
        create: bool = True,
        ttl: float | None = None,
        timeout: float = 5.0,
        stale_after: float = 30.0,
        wait: float = 0.0,
    ) -> None:
        super().__init__(
            FolderBackend(folder, fleet, create=create, ttl=ttl, timeout=timeout), stale_after=stale_after, wait=wait
        )
        self.fleet, self.copies, self.pause, self.strict, self.token = fleet, copies, pause, strict, token

    @classmethod
    def options_in(cls, url):
        return {"folder": url.file()}

    @classmethod
    @contextmanager
    def scratch(cls, **options):
        with TemporaryDirectory() as folder:
            yield cls(**options | {"folder": folder, "create": True})
"""

REMOTE = """
from agentic import AgentRegistry, MemoryRegistry
from agentic.urls import StoreURL


class RemoteRegistry(AgentRegistry):
    def __init__(self, url: str | StoreURL = "remote://here", *, password: str | None = None, prefix: str = "p",
                 ttl: float | None = None, timeout: float = 5.0, stale_after: float = 30.0, wait: float = 0.0) -> None:
        super().__init__(MemoryRegistry(ttl=ttl, timeout=timeout).backend, stale_after=stale_after, wait=wait)
        self.url, self.password, self.prefix = StoreURL.parse(url), password, prefix
"""

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution of one module: return the module's name."""
    modules = []

    def installed(distribution: str, source: str, *entries: str) -> str:
        module = f"{distribution.replace('-', '_')}_{tmp_path.name.replace('-', '_')}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{target}" for name, _, target in (entry.partition("=") for entry in entries)]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)
        return module

    yield installed
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def folders(install: Install) -> str:
    return install("agentic-folders", FOLDERS, "folder=FolderRegistry")


def made(source: Any = None, **options: Any) -> Any:
    return open_registry(source, **options)


def test_a_store_of_this_distribution_is_registered_like_any_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"][GROUP] == OWN
    assert [store_class(name) for name in ("memory", "sqlite")] == [MemoryRegistry, SQLiteRegistry]


async def test_it_is_opened_by_its_url(folders: str, tmp_path: Path) -> None:
    url = f"folder:///{tmp_path}?fleet=blue"
    async with open_registry(url) as registry:
        await registry.register(AgentInfo("a"))
    async with open_registry(registry.store) as again:
        assert [agent.id for agent in await again.list()] == ["a"]
    assert type(registry).__module__ == folders


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("fleet", "blue", "blue"),
        ("copies", "3", 3),
        ("pause", "0.5", 0.5),
        ("strict", "yes", True),
        ("token", "t", "t"),
        ("ttl", "60", 60.0),
    ],
)
@pytest.mark.usefixtures("folders")
def test_its_options_are_given_in_every_way(
    name: str, text: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"folder:///{tmp_path}"
    field = {"ttl": value} if name == "ttl" else {"options": {name: text}}
    registries = [
        made(url, **{name: value}),
        made(f"{url}?{name}={text}"),
        made({"url": url, **field}),
        made(RegistryConfig(url=url, **field)),
        made({"url": f"{url}?{name}={text}", "options": {"fleet": "other", "copies": 5}}),
    ]
    monkeypatch.setenv("AGENTIC_URL", url)
    monkeypatch.setenv(f"AGENTIC_{name.upper()}", text)
    monkeypatch.setenv("AGENTIC_UNRELATED", "x")
    assert [getattr(each, name) for each in (*registries, made())] == [value] * 6


@pytest.mark.parametrize(
    ("query", "options", "problem"),
    [
        ("?flet=x", {}, "^URL: unknown parameter; did you mean 'fleet'"),
        ("?folder=x", {}, "^URL: unknown parameter: expected fleet, copies"),
        ("?copies=few", {}, "^copies: must be a whole number, got another text$"),
        ("?strict=1", {}, "^strict: must be yes, no, true or false$"),
        ("", {"flet": "x"}, "^the folder store has no such option; did you mean 'fleet'"),
        ("", {"prefix": "x"}, "^prefix: the folder store has no such option: expected folder, fleet"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_its_wrong_options_are_named(query: str, options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        open_registry(f"folder:///{tmp_path}{query}", **options)
    if "flet" in options:
        with pytest.raises(ConfigurationError, match=problem):
            open_registry(RegistryConfig(url=f"folder:///{tmp_path}", options=options))


@pytest.mark.usefixtures("folders")
def test_an_option_that_is_a_secret_is_not_shown() -> None:
    config = RegistryConfig(url="folder:///x?token=s3cr3t", options={"token": "s3cr3t", "copies": 2})
    assert repr(config) == "RegistryConfig(url='folder:///x?token=***', options={'token': '***', 'copies': 2})"
    with pytest.raises(ConfigurationError, match="^expected a mapping of options, got str$"):
        RegistryConfig(options="s3cr3t")  # type: ignore[arg-type]


@pytest.mark.usefixtures("folders")
def test_the_command_line_works_on_it(tmp_path: Path) -> None:
    url = f"folder:///{tmp_path}?fleet=blue"

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--url", url])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert CliRunner().invoke(app, ["ls", "--url", url]).exit_code == 1
    assert list(tmp_path.glob("*.db")) == []  # `create` is among its options, and `ls` creates nothing.
    run("register", "real")
    assert "has a fleet named blue" in run("doctor")
    played = run("demo", "--agents", "6")
    assert "2 were taken offline, 1 came back." in played
    assert f"agentic ls --url '{url}'" in played
    command = [sys.executable, "-m", "agentic", "ls", "--json", "--url", url]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    assert [(agent["id"], agent["status"]) for agent in json.loads(done.stdout)] == [("real", "available")]
    refused = CliRunner().invoke(app, ["ls", "--url", url, "--prefix", "p"])
    assert refused.stderr.startswith("error: prefix: the folder store has no such option")


def test_a_class_without_hooks_gets_its_url_and_has_no_demo(install: Install) -> None:
    install("agentic-remote", REMOTE, "remote=RemoteRegistry", "remotes=RemoteRegistry")
    registry = made("remotes+tls://u:p%40@h:5/x?prefix=q", password="r")
    assert (registry.url.scheme, registry.url.written) == ("remotes+tls", "remotes+tls://u:p%40@h:5/x")
    assert (registry.url.password, registry.password, registry.prefix) == ("p@", "r", "q")
    assert str(registry.url) == "remotes+tls://u:***@h:5/x"
    assert made({"backend": "remote", "prefix": "q"}).prefix == "q"
    assert made({"backend": "remote", "url": "remotes://h"}).url.scheme == "remotes"
    with pytest.raises(ConfigurationError, match="^backend: sqlite does not agree with the URL, which names remote$"):
        made({"backend": "sqlite", "url": "remote://h"})
    done = CliRunner().invoke(app, ["demo", "--url", "remote://h"])
    assert done.stderr == "error: RemoteRegistry has no scratch registry, which the demo needs: name another store\n"


def test_an_unknown_scheme_is_answered_with_those_that_are_installed(folders: str) -> None:
    assert folders
    with pytest.raises(ConfigurationError, match="installed are memory, .*, unix, folder; other stores are packages"):
        open_registry("postgres://h")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("raise RuntimeError('no library\\n' * 500)", r"RuntimeError: no library\\n"),
        ("import a_driver_that_is_not_there", "ModuleNotFoundError: No module named 'a_driver_that_is_not_there'"),
        ("", "AttributeError: module .* has no attribute 'Broken'"),
        ("Broken = dict", "TypeError: .*:Broken is not an AgentRegistry class"),
        ("Broken = 5", "TypeError: .*:Broken is not an AgentRegistry class"),
        (
            "from __future__ import annotations\nfrom agentic import AgentRegistry\n"
            "class Broken(AgentRegistry):\n    def __init__(self, url: Url) -> None: ...",
            "NameError: name 'Url' is not defined",
        ),
    ],
)
def test_one_that_cannot_be_used_is_named_with_its_distribution(install: Install, source: str, problem: str) -> None:
    module = install("agentic-broken", source, "broken=Broken")
    assert type(open_registry("memory://")) is MemoryRegistry
    assert module not in sys.modules
    with pytest.raises(
        ConfigurationError, match=f"^the broken store of agentic-broken cannot be used: {problem}"
    ) as caught:
        open_registry("broken://h")
    assert caught.value.__cause__ is not None
    assert len(str(caught.value)) < 300
    done = CliRunner().invoke(app, ["ls", "--url", "broken://h"])
    assert (done.exit_code, done.stderr) == (1, f"error: {caught.value}\n")


def test_one_that_two_distributions_have_is_refused(install: Install) -> None:
    for distribution in ("agentic-one", "agentic-two"):
        install(distribution, REMOTE, "remote=RemoteRegistry", "memory=RemoteRegistry")
    with pytest.raises(
        ConfigurationError, match="^several distributions have a remote store: agentic-one, agentic-two$"
    ):
        open_registry("remote://h")
    assert type(open_registry("memory://")) is MemoryRegistry  # One of this distribution cannot be replaced.


def test_what_a_variable_names_is_not_looked_up_without_a_store(folders: str) -> None:
    config = RegistryConfig.from_env({"AGENTIC_FLEET": "blue"})
    assert (config, folders in sys.modules) == (RegistryConfig(), False)
    config = RegistryConfig.from_env({"AGENTIC_FLEET": "blue", "AGENTIC_BACKEND": "FOLDER", "AGENTIC_COPIES": ""})
    assert config == RegistryConfig(backend="FOLDER", options={"fleet": "blue"})
    assert isinstance(hash(config), int)
    assert issubclass(store_class("folder"), AgentRegistry)
