"""`crishim stuck`: operations of the server that are under way, and what it could not free or finds missing."""

from __future__ import annotations

import argparse
import json

from crishim.app.client import messages
from crishim.cli import gc
from crishim.cli.output import add_client_arguments, connect, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long is stuck."""
    parser.add_argument(
        "--longer-than", metavar="SECONDS", type=float, default=0.0, help="only those in one stage for this long (0)"
    )
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A line per operation, the oldest first; then a line per leftover."""
    with connect(arguments) as client:
        info = client.runtime("Status", messages.StatusRequest(verbose=True)).info
    found = [each for each in json.loads(info["operations"]) if each["stage_seconds"] >= arguments.longer_than]
    leftovers = json.loads(info["leftovers"])
    if arguments.json:
        print_json({"operations": found, "leftovers": leftovers})
        return 0
    rows = [
        [
            each["operation"],
            each["stage"],
            f"{each['seconds']:.1f}s",
            f"{each['stage_seconds']:.1f}s",
            str(each["callers"]),
            each["waits_for"] or "-",
        ]
        for each in found
    ]
    print_table(["OPERATION", "STAGE", "AGE", "IN STAGE", "CALLERS", "WAITS FOR"], rows)
    if leftovers:
        print()
        print_table(gc.TITLES, gc.rows(leftovers))
    return 0
