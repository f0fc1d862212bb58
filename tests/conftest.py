"""What holds for every tier: in CI an unexpected skip is a failure, and a test session leaves nothing behind."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.leftovers import MARK, Machine, new_since
from tests.support.skips import unexpected_skips

# Tests that fork do so in a process where others have loaded grpc, whose fork handlers abort the child now and then.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# how long one example takes says more about the machine than about the code
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

IN_CI = os.environ.get("CRISHIM_CI") == "1"

_before = pytest.StashKey[Machine]()
_leftovers = pytest.StashKey[list[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    # a run that is ended by its time limit tears its fixtures down, as one ended by Ctrl-C does
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("ended by SIGTERM", returncode=143))
    # processes inherit the mark, so one that daemonised is still known as ours
    os.environ[MARK] = uuid.uuid4().hex
    _not_to_be_repeated(session.config).unlink(missing_ok=True)
    session.config.stash[_before] = Machine.observe()


@pytest.hookimpl(trylast=True)  # after the last fixtures are torn down
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turns a green session red when it left something behind or skipped what CI is meant to run."""
    leftovers = new_since(session.config.stash[_before], deadline_s=5.0)
    session.config.stash[_leftovers] = leftovers
    skipped = unexpected_skips(_skip_reports(session.config)) if IN_CI else []
    if IN_CI and (leftovers or skipped):
        place = _not_to_be_repeated(session.config)
        place.parent.mkdir(exist_ok=True)
        place.write_text("\n".join([*leftovers, *skipped]))
        if exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    problems = {
        "left behind by the tests": config.stash.get(_leftovers, []),
        "skipped, though nothing expects it": unexpected_skips(_skip_reports(config)) if IN_CI else [],
    }
    for title, lines in problems.items():
        if lines:
            terminalreporter.section(title, red=IN_CI)
            terminalreporter.write_line("\n".join(lines))


def _not_to_be_repeated(config: pytest.Config) -> Path:
    """`make test` runs failed tests once more; leftovers and skips of the first run would not show again."""
    return config.rootpath / ".pytest_cache" / "not-to-be-repeated"


def _skip_reports(config: pytest.Config) -> list[tuple[str, str]]:
    """(node id, reason) of every skip so far."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return []
    return [(report.nodeid, _reason(report)) for report in reporter.stats.get("skipped", [])]


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
