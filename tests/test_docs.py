"""The pages name what there is: every public name, command, variable and logger. Their code is run by test_examples."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer.core
import typer.main

import agentic
import agentic.errors
from agentic import AgentRegistry, MemoryRegistry, RedisRegistry, RegistryConfig, RegistryError, SQLiteRegistry
from agentic.cli import app
from agentic.config import ENVIRONMENT_PREFIX, OPTIONS
from benchmarks.report import markdown

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def documented_acl(user: str = "agentic") -> list[str]:
    """The words of the command that the operations page gives for a user with the least rights."""
    (command,) = re.findall(rf"^(ACL SETUSER {user} .*)$", page("operations.md"), re.MULTILINE)
    return str(command).split()


def test_the_reference_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: agentic\.(\w+)$", page("api.md"), re.MULTILINE))
    errors = {
        name
        for name in agentic.__all__
        if isinstance(cls := getattr(agentic, name), type) and issubclass(cls, RegistryError)
    }
    assert "errors" in shown
    assert errors <= set(vars(agentic.errors))
    assert shown - {"errors"} == set(agentic.__all__) - errors


def test_the_command_line_page_has_every_command() -> None:
    command = typer.main.get_command(app)
    shown = set(re.findall(r"^\$ agentic (\w+)", page("cli.md"), re.MULTILINE))
    assert isinstance(command, typer.core.TyperGroup)
    assert shown == set(command.commands)


def test_the_stores_page_has_every_option() -> None:
    table = page("stores.md").partition("## Options")[2]
    shown = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(shown) == sorted({name for names in OPTIONS.values() for name in names} | {"clock", "client"})
    assert set(shown) - {"clock", "client"} == {field.name for field in fields(RegistryConfig)} - {"backend"}


def test_the_stores_page_names_only_variables_that_there_are() -> None:
    shown = set(re.findall(rf"`{ENVIRONMENT_PREFIX}([A-Z]+)\b", page("stores.md")))
    assert shown
    assert shown <= {field.name.upper() for field in fields(RegistryConfig)}


@pytest.mark.parametrize("store", [MemoryRegistry, SQLiteRegistry, RedisRegistry])
def test_every_argument_of_a_store_can_be_configured(store: type[AgentRegistry]) -> None:
    arguments = set(inspect.signature(store).parameters) - {"clock", "client"}
    assert arguments == set(OPTIONS[store.__name__.removesuffix("Registry").lower()])


def test_the_operations_page_has_every_logger() -> None:
    named = {
        name
        for source in (ROOT / "agentic").rglob("*.py")
        for name in re.findall(r'getLogger\("([^"]+)"\)', source.read_text(encoding="utf-8"))
    }
    assert named
    assert set(re.findall(r"`(agentic\.\w+)`", page("operations.md"))) == named


def test_the_reliability_page_names_tests_that_there_are() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page("reliability.md")))
    assert len(named) > 50
    assert named <= set(re.findall(r"^(?:async )?def (test_\w+)", sources, re.MULTILINE))


@pytest.mark.parametrize("run", ["asyncio", "uvloop"])
def test_the_performance_page_shows_the_committed_runs_as_they_are(run: str) -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / f"{run}.json").read_text(encoding="utf-8"))
    assert markdown(document) in page("performance.md")


def test_the_readme_gives_the_figures_of_the_committed_run() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "asyncio.json").read_text(encoding="utf-8"))
    found = {(each["store"], each["call"], each["size"]): each for each in document["results"]}
    beats, commits = found["redis", "heartbeat", 1_000], found["sqlite", "heartbeat", 1_000]
    claims = (
        f"Redis takes {beats['medians']['agentic']['rate']:,.0f} a second, {beats['ratios']['GET and SET a call']:.3g} times",
        f"SQLite takes {commits['medians']['agentic']['rate']:,.0f}, {commits['ratios']['one commit a call, NORMAL']:.3g} times",
        f"is {found['redis', 'list', 20_000]['ratios']['GET and SET a call']:.3g} times as fast as one GET per key",
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [claim for claim in claims if claim not in readme] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_page_is_linked_from_the_readme_and_from_the_index(path: Path) -> None:
    assert f"](docs/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8") or path.name == "index.md"
    assert f"]({path.name})" in page("index.md") or path.name == "index.md"
