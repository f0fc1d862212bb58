"""What the pages say of the project exists: files, tests, commands, series, links, and the table of the rooms."""

from __future__ import annotations

import argparse
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crishim.cli.main import COMMANDS
from crishim.metrics import containers
from crishim.metrics.node import NodeMetrics
from tests.unit.test_import_rooms import ALLOWED, DOOR_ROOM, EVERYTHING, EXECUTOR_DOOR, IN_DOOR_ROOM

PROJECT = Path(__file__).resolve().parents[2]
PAGES = {page.relative_to(PROJECT).as_posix(): page.read_text() for page in sorted((PROJECT / "docs").glob("*.md"))}
PAGES |= {name: (PROJECT / name).read_text() for name in ("README.md", "CHANGELOG.md")}


@cache
def files() -> frozenset[str]:
    found = (path for top in ("crishim", "tests", "docs", "charts", "packaging") for path in (PROJECT / top).rglob("*"))
    return frozenset("/" + path.relative_to(PROJECT).as_posix() for path in found)


@cache
def facts() -> frozenset[str]:
    text = "\n".join(path.read_text() for path in (PROJECT / "tests").rglob("*.py"))
    return frozenset(re.findall(r"^ *(?:async )?def test_(\w+)", text, re.MULTILINE))


def rows(page: str) -> list[list[str]]:
    """Cells of each line of a table."""
    lines = [line for line in PAGES[page].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_a_page_names_is_there(page: str) -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:py|proto|service))`", PAGES[page]))
    for stem, inner, suffix in re.findall(r"`([\w./-]*)\{([\w,]+)\}(\.py)`", PAGES[page]):
        named |= {f"{stem}{name}{suffix}" for name in inner.split(",")}
    missing = {name for name in named if not any(file.endswith("/" + name) for file in files())}
    assert missing == set()


def test_a_file_that_a_module_names_is_there() -> None:
    """In its docstrings and comments."""
    modules = [path for path in (PROJECT / "crishim").rglob("*.py") if "pb" not in path.parts]
    named = {(path.name, name) for path in modules for name in re.findall(r"`([\w./]+\.py)`", path.read_text())}
    assert {pair for pair in named if not any(file.endswith("/" + pair[1]) for file in files())} == set()


@pytest.mark.parametrize("page", ["docs/process.md", "docs/security.md", "docs/architecture.md"])
def test_a_test_that_a_page_names_is_there(page: str) -> None:
    """Names are the facts of test functions; "..." is what was left out at the end."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    named = set(re.findall(r"`((?:t\d+_)*[a-z0-9]+(?:_[a-z0-9]+){4,}_?(?:\.\.\.)?|t\d+_\.\.\.)`", text))
    assert named
    missing = {
        name
        for name in named
        if not any(each.startswith(name[:-3]) if name.endswith("...") else each == name for each in facts())
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        there = (PROJECT / page).parent / path if path else PROJECT / page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def test_the_readme_leads_to_every_page() -> None:
    assert [page for page in PAGES if page.startswith("docs/") and f"]({page})" not in PAGES["README.md"]] == []


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_a_table_of_commands_has_all_of_them(page: str) -> None:
    told = " ".join(row[0] for row in rows(page) if row[0].startswith("`crishim "))
    assert [name for name in COMMANDS if not re.search(rf"`(crishim )?{name}\b", told)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_command_that_a_page_shows_has_its_options(page: str) -> None:
    shown = re.findall(r"(?:`|^|python -m )crishim ([a-z]+)((?: [^`\n#]*)?)", PAGES[page], re.MULTILINE)
    for command, words in shown:
        assert command in COMMANDS, command
        parser = argparse.ArgumentParser()
        import_module(COMMANDS[command][0]).add_arguments(parser)
        known = parser.format_help()
        for option in re.findall(r"(?<=[ \[])--?[a-z][a-z-]*", words.partition(" -- ")[0]):
            assert option in known, f"crishim {command} {option}"


def test_the_page_of_metrics_has_every_series() -> None:
    page = NodeMetrics("0.1.0", lambda: [("attach", 1.0)]).render().decode()
    series = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(page)
        if family.name.startswith("crishim_")
    }
    of_containers = (*containers._STATUS, *containers._EXECS, *containers._EXIT, *containers._SAMPLE)
    series |= {name: kind for name, kind, _ in of_containers}
    told = {
        name: row[1]
        for row in rows("docs/metrics.md")
        for name in re.findall(r"`(\w+)`", row[0])
        if row[1] in ("counter", "gauge", "histogram")
    }
    assert told == series


def test_the_table_of_rooms_is_the_one_that_is_walked() -> None:
    told = {}
    for room, *_, imports in rows("docs/architecture.md"):
        if found := re.match(r"(its door, )?`(\w+)(?:\.py|/)", room):
            told[DOOR_ROOM if found[1] else found[2]] = imports
            if found[1]:
                inner = re.search(r"\{(.*)\}", room)
                assert inner is not None
                assert {f"executor.{name}" for name in inner[1].split(",")} == IN_DOOR_ROOM
    walked = {room: allowed for room, allowed in ALLOWED.items() if not room.startswith("__")}
    assert told.keys() == walked.keys()
    for room, allowed in walked.items():
        if allowed is EVERYTHING:
            assert told[room] == "everything"
            continue
        names = {name.strip() for name in told[room].split(",")} - {"-", "standard library"}
        expected = {*allowed - EXECUTOR_DOOR, *({DOOR_ROOM} if allowed & EXECUTOR_DOOR else ())}
        assert names == expected, room
