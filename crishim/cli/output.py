"""How the client commands find the server and print what it says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from crishim.app.client import Client
from crishim.config import ServerConfig


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """--address and --json."""
    default = f"unix://{ServerConfig().listen}"
    parser.add_argument("--address", metavar="unix://PATH", default=default, help=f"socket of the server ({default})")
    parser.add_argument("--json", action="store_true", help="print JSON")


def connect(arguments: argparse.Namespace) -> Client:
    """A client of the server that --address names."""
    return Client(arguments.address)


def print_json(value: object) -> None:
    """One JSON value, indented."""
    print(json.dumps(value, indent=2, sort_keys=True))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest value."""
    lines = [list(titles), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def size(count: int) -> str:
    """Bytes for people: "1.5 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def visible(text: str) -> str:
    """Names come from images and pods: no control character reaches the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
