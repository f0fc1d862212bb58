"""`crishim gc`: what is on the node and belongs to nobody, and the end of it."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from typing import Any

from crishim.cli.output import add_client_arguments, connect, print_json, print_table, visible

_LEFT = ("found", "failed", "waiting", "said")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether it is freed."""
    parser.add_argument("--dry-run", action="store_true", help="only look")
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A line per thing and one sentence; exit status 1 when something is left or the node could not be looked at."""
    with connect(arguments) as client:
        report = json.loads(client.collect_garbage(dry_run=arguments.dry_run))
    left = any(each["outcome"] in _LEFT for each in report["leftovers"]) or bool(report["problems"])
    if arguments.json:
        print_json(report)
        return int(left)
    if report["leftovers"]:
        print_table(TITLES, rows(report["leftovers"]))
    for problem in report["problems"]:
        print(visible(f"not looked at: {problem}"))
    print(summary(report))
    return int(left)


TITLES = ["KIND", "NAME", "OF", "SINCE", "OUTCOME", "ATTEMPTS", "WHY"]


def rows(leftovers: list[dict[str, Any]]) -> list[list[str]]:
    """A row of the table for each."""
    return [
        [
            each["kind"],
            each["name"],
            each["owner"][:12] or "-",
            time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(each["since_ns"] // 1_000_000_000)),
            "missing" if each["missing"] else each["outcome"],
            str(each["attempts"]),
            each["error"] or each["problem"],
        ]
        for each in leftovers
    ]


def summary(report: dict[str, Any]) -> str:
    """One sentence."""
    count = Counter("missing" if each["missing"] else each["outcome"] for each in report["leftovers"])
    if not count:
        return "Nothing is left behind." if not report["problems"] else "Nothing is left behind where it could be seen."
    words = {
        "found": "would be freed",
        "freed": "freed",
        "failed": "could not be freed and will be tried again",
        "waiting": "not tried for want of time",
        "missing": "missing of pods that live",
    }
    return ", ".join(f"{count[outcome]} {text}" for outcome, text in words.items() if count[outcome]) + "."
