"""What is released: its README, its changelog, and the name by which it is installed. `nox -s package` checks the files."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from itertools import pairwise

import pytest

import agentic
from tests.support.documents import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def built_readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for each in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_every_link_and_picture_of_the_built_readme_is_absolute() -> None:
    repository = PROJECT["project"]["urls"]["Homepage"]
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", built_readme())
    assert len(links) > 10
    assert [link for _, link in links if not link.startswith("https://")] == []
    pictures = [link for mark, link in links if mark]
    assert pictures
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    assert [link for link in pictures if not link.startswith(raw)] == []


def test_every_address_in_the_metadata_is_of_one_repository() -> None:
    urls = PROJECT["project"]["urls"]
    owner, _, name = urls["Homepage"].removeprefix("https://github.com/").partition("/")
    assert owner
    assert all(url.startswith((urls["Homepage"], f"https://{owner}.github.io/{name}/")) for url in urls.values())
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"repo_url: {urls['Homepage']}\n" in settings
    assert f"site_url: {urls['Documentation']}\n" in settings


def test_the_version_is_written_in_one_place() -> None:
    version = PROJECT["project"]["version"]
    assert metadata("agentic-registry")["Version"] == version
    sources = [
        *(ROOT / "agentic").rglob("*.py"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "README.md",
        ROOT / "mkdocs.yml",
    ]
    written = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    assert [path.name for path in sources if written.search(path.read_text(encoding="utf-8"))] == []


def test_the_changelog_is_well_formed_and_has_the_current_version() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:]]
    versions = [tuple(map(int, found.groups())) for found in released if found]
    assert len(versions) == len(released), "a heading is '## [1.2.3] - 2027-01-31'"
    assert all(newer > older for newer, older in pairwise(versions))
    current = tuple(map(int, PROJECT["project"]["version"].split(".")))
    unreleased = CHANGELOG.partition("## [Unreleased]\n")[2].partition("\n## ")[0].strip()
    # Either it is released and newest, or it is the next one and has entries.
    assert versions[:1] == [current] or (unreleased and all(version < current for version in versions))


def test_each_kind_of_change_has_entries() -> None:
    sections = re.findall(r"^### (.*)\n\n(.*)$", CHANGELOG, re.MULTILINE)
    assert sections
    assert {kind for kind, _ in sections} <= KINDS
    assert [kind for kind, first in sections if not first.startswith("- ")] == []


@pytest.mark.parametrize("name", agentic.__all__)
def test_the_changelog_names_every_public_name(name: str) -> None:
    assert re.search(rf"\b{name}\b", CHANGELOG)


def test_every_install_line_has_the_name_of_the_distribution() -> None:
    places = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "agentic").rglob("*.py"),
        *(ROOT / "examples").glob("*.py"),
    ]
    found = [
        (path.name, what)
        for path in places
        for what in re.findall(r"pip install [\"']?([^`\n&|]+)", path.read_text(encoding="utf-8"))
    ]
    assert any(what.startswith("agentic-registry") for _, what in found)
    wrong = [each for each in found if re.search(r"\bagentic\b(?!-registry)", each[1])]
    assert wrong == []
