"""`crishim config`: the configuration in force for a start, each value with the file that it is from."""

from __future__ import annotations

import argparse
from pathlib import Path

from crishim.cli.output import print_json
from crishim.config import DEFAULT_PATH, flat, name_of, read, toml_value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which file."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"default {DEFAULT_PATH}, if it exists; FILE.d/*.toml is read too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """A line of TOML per key; without a mark behind it the value is the default. 1 when a server would not start."""
    path = arguments.config
    loaded = read(path or DEFAULT_PATH, optional=path is None)
    values = flat(loaded.config)
    if arguments.json:
        keys = [{"key": name_of(key), "value": value, "from": loaded.origins.get(key)} for key, value in values.items()]
        print_json({"config": keys})
        return 0
    for key, value in values.items():
        origin = loaded.origins.get(key)
        print(f"{name_of(key)} = {toml_value(value)}" + (f"  # {origin}" if origin else ""))
    return 0
