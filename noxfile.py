"""Checks to run before a change lands: `nox` runs all, `nox -s tests` one of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.default_venv_backend = "uv|venv"  # uv installs several times faster than pip
nox.options.sessions = ["lint", "types", "docs", "package", "tests"]
nox.options.reuse_venv = "yes"

GROUPS = nox.project.load_toml("pyproject.toml")
CONTRACT = (
    "test_contract.py",
    "test_validation.py",
    "test_agent.py",
    "test_config.py",
    "redis",
    "sqlite",
)
"""Tests that must pass with every supported version of a dependency: the contract and those of each store."""

NEIGHBOURS = (
    "agent-framework",
    "celery",
    "crewai",
    "fastmcp",
    "google-adk",
    "langgraph",
    "limits[redis]",
    "open-webui",
    "prefect",
    "pydantic-ai",
    "saq[redis]",
)
"""Packages that users install together with this one."""


def install(session: nox.Session, *groups: str) -> None:
    """Install this package with its command line, and the dependency groups of pyproject.toml."""
    session.install(
        "-e", ".[cli]", *(each for group in groups for each in nox.project.dependency_groups(GROUPS, group))
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, form and the direction of imports."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, and a typical user's code with two more checkers."""
    install(session, "types")
    session.run("mypy")
    session.run("pyright")
    session.run("pyrefly", "check", "tests/typical_use.py")
    session.run("ty", "check", "tests/typical_use.py")


# Tests mostly wait, so use more workers than processors.
IN_PARALLEL = ("-n", "6", "--dist", "worksteal")


def run_in_parallel(session: nox.Session, *arguments: str) -> None:
    """Run tests in parallel, and those that fail once more, one by one.

    Many tests wait for real servers and have real timeouts, which a busy machine can exceed. A fault fails alone too.
    """
    try:
        session.run("pytest", *IN_PARALLEL, *arguments)
    except CommandFailed:
        session.warn("tests failed beside others, see above: running them again, one by one")
        session.run("pytest", *arguments, "--last-failed", "--exitfirst")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on every store; arguments go to pytest."""
    install(session, "test")
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        run_in_parallel(session)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run the tests and fail if branch coverage is below the limit; tracing takes half as long again."""
    install(session, "test")
    session.run("pytest", *IN_PARALLEL, "--cov", "--cov-report=term", *session.posargs)


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """Run the tests of the contract and the stores with the lowest versions allowed by pyproject.toml."""
    session.install("uv")
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "-e", ".[cli]")
    # Test dependencies are the latest; installing them does not change the versions above.
    session.run("uv", "pip", "install", *nox.project.dependency_groups(GROUPS, "test"))
    files = [str(Path("tests", each)) for each in CONTRACT]
    # These take long, and depend on the server rather than on the version of a library.
    servers = ("test_fa*", "test_agreement", "test_late_writes", "test_records", "test_resharding", "test_roles")
    skipped = [f"--ignore-glob=*/{each}.py" for each in servers]
    # The same code and drivers as a SQLite file and a single Redis server, or no driver.
    same = ("TestMemory", "TestSQLiteInMemory", "TestRedisSentinel", "TestRedisCluster")
    skipped += [f"--deselect=tests/test_contract.py::{name}" for name in same]
    run_in_parallel(session, *skipped, *files, *session.posargs)


@nox.session(default=False)
def beside(session: nox.Session) -> None:
    """Resolve this package together with others; each must keep the version it has without this package."""
    session.install("uv")
    neighbour = Path(session.create_tmp()) / "neighbour.in"
    failed = []
    for each in session.posargs or NEIGHBOURS:
        neighbour.write_text(each)
        name = each.partition("[")[0]
        alone = versions(session, str(neighbour)).get(name, "not available")
        found = versions(session, "pyproject.toml", "--extra", "cli", str(neighbour))
        drivers = ", ".join(f"{driver} {found.get(driver)}" for driver in ("redis", "aiosqlite"))
        print(f"{each}: {found.get(name)} with {drivers}; without this package {alone}")
        if found.get(name) != alone:
            failed.append(each)
    if failed:
        session.error(f"not installable in their current versions with this package: {', '.join(failed)}")


def versions(session: nox.Session, *sources: str) -> dict[str, str]:
    """Return the versions that the resolver picks, or nothing if there is no solution; install nothing."""
    found = session.run(
        "uv", "pip", "compile", "--quiet", "--no-annotate", *sources, silent=True, log=False, success_codes=[0, 1]
    )
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", str(found), re.MULTILINE))


@nox.session(default=False)
def frameworks(session: nox.Session) -> None:
    """Run and type-check the examples for Litestar, LangGraph and the OpenAI Agents SDK."""
    install(session, "test", "frameworks")
    session.run("pytest", "tests/frameworks/test_examples.py", *session.posargs)
    session.run("mypy", *(str(path) for path in Path("examples/frameworks").glob("*.py") if "crewai" not in path.name))


@nox.session(default=False)
def crewai(session: nox.Session) -> None:
    """Run the crewai example; its installation takes minutes and a gigabyte."""
    install(session, "test", "crewai")
    session.run("pytest", "tests/frameworks/test_crewai.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link or anchor is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict")


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist, and from it the wheel, and check both."""
    session.install(*nox.project.dependency_groups(GROUPS, "package"))
    folder = Path(session.create_tmp()) / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder))
    built = [str(path) for path in sorted(folder.iterdir())]
    session.run("twine", "check", "--strict", *built)
    session.run("check-wheel-contents", *(path for path in built if path.endswith(".whl")))


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks; arguments are passed to `python -m benchmarks`."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Inject random faults into a fleet for some minutes; arguments are passed to `python -m tests.chaos`."""
    install(session, "test")
    session.run("python", "-m", "tests.chaos", *session.posargs)
