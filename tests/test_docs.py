"""The pages name what there is: every public name, command, variable and logger. Their code is run by test_examples."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer.core
import typer.main

import agentic
import agentic.errors
from agentic import AgentRegistry, MemoryRegistry, RedisRegistry, RegistryConfig, RegistryError, SQLiteRegistry
from agentic.cli.app import app
from agentic.config import ENVIRONMENT_PREFIX
from agentic.stores import options_of
from benchmarks.tables import BLOCK, filled
from benchmarks.tables import PAGES as PAGES_WITH_FIGURES
from tests.support.documents import ROOT, page

STORES: tuple[type[AgentRegistry], ...] = (MemoryRegistry, SQLiteRegistry, RedisRegistry)
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: agentic\.(\w+)$", page("api.md"), re.MULTILINE))
    errors = {
        name
        for name in agentic.__all__
        if isinstance(cls := getattr(agentic, name), type) and issubclass(cls, RegistryError)
    }
    assert "errors" in shown
    assert errors <= set(vars(agentic.errors))
    assert shown - {"errors", "incarnations"} == set(agentic.__all__) - errors


def test_the_command_line_page_has_every_command() -> None:
    command = typer.main.get_command(app)
    shown = set(re.findall(r"^\$ agentic (\w+)", page("cli.md"), re.MULTILINE))
    assert isinstance(command, typer.core.TyperGroup)
    assert shown == set(command.commands)


def test_the_stores_page_has_every_option() -> None:
    table = page("stores.md").partition("## Options")[2]
    shown = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    options = {name for store in STORES for name in options_of(store)}
    assert sorted(shown) == sorted(options | {"clock", "client"})
    assert options == {field.name for field in fields(RegistryConfig)} - {"backend", "options"}


def test_the_stores_page_names_only_variables_that_there_are() -> None:
    shown = set(re.findall(rf"`{ENVIRONMENT_PREFIX}([A-Z]+)\b", page("stores.md")))
    assert shown
    assert shown <= {field.name.upper() for field in fields(RegistryConfig)}


@pytest.mark.parametrize("store", STORES)
def test_every_argument_of_a_store_can_be_configured(store: type[AgentRegistry]) -> None:
    arguments = set(inspect.signature(store).parameters) - {"clock", "client"}
    assert arguments == options_of(store).keys()


def test_the_observe_page_has_every_logger() -> None:
    named = {
        name
        for source in (ROOT / "agentic").rglob("*.py")
        for name in re.findall(r'getLogger\("([^"]+)"\)', source.read_text(encoding="utf-8"))
    }
    assert named
    rows = re.findall(r"^\| (`agentic\..*?) \|", page("observe.md"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(agentic\.\w+)`", row)} == named


def test_the_reliability_page_names_tests_that_there_are() -> None:
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "agentic" / "testing" / "contract").glob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"`(test_\w+)`", page("reliability.md")))
    assert len(named) > 50
    assert named <= set(re.findall(r"^(?:    )?(?:async )?def (test_\w+)", sources, re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_page_is_linked_from_the_readme_and_from_the_index(path: Path) -> None:
    assert f"](docs/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8") or path.name == "index.md"
    assert f"]({path.name})" in page("index.md") or path.name == "index.md"


def messages() -> str:
    """Every text in the source, with `{}` in place of what is formatted."""
    texts = []
    for path in (ROOT / "agentic").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr(values=parts):
                    texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts))
                case ast.Constant(value=str(text)):
                    texts.append(text)
    return "\n".join(texts)


def test_the_messages_that_the_troubleshooting_page_quotes_are_there() -> None:
    text = page("troubleshoot.md")
    rows = [
        row for table in text.split("| message | cause | do |")[1:] for row in table.partition("\n\n")[0].splitlines()
    ]
    quoted = [found[1] for row in rows if (found := re.match(r"\| `([^`]+)` \|", row))]
    quoted += re.findall(r"\| the log says `([^`]+)`", text)
    assert len(quoted) > 20
    known = messages()
    assert [message for message in quoted if message not in known] == []


def test_the_pages_show_the_committed_runs_as_they_are() -> None:
    for name in PAGES_WITH_FIGURES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert BLOCK.search(text), name
        assert filled(text) == text, f"{name}: run python -m benchmarks.tables"


def test_a_page_with_other_figures_is_found() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert filled(text.replace("| 1,000 | 100 |", "| 1,000 | 101 |")) == text


def test_every_log_field_is_on_the_page() -> None:
    written = {
        name
        for path in (ROOT / "agentic").rglob("*.py")
        for names in re.findall(r"(?:extra=|fields = )\{(.*?)\}", path.read_text(encoding="utf-8"))
        for name in re.findall(r'"(\w+)":', names)
    }
    assert written
    assert written <= set(re.findall(r"^\| `(\w+)` \|", page("observe.md").partition("### Fields")[2], re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_included_files_exist_and_are_included(path: Path) -> None:
    for marker, name in re.findall(r"^ *(\S*8 ?<.*?)\"(.+)\"$", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert marker == "--8<-- "  # A formatter of code in pages adds spaces, and the page shows the marker.
        assert (ROOT / name).is_file()
