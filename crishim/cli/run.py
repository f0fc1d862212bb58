"""`crishim run PATH|IMAGE -- COMMAND`: one isolated process with our stdio; its exit code is ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crishim import config
from crishim.app.run import RunRequest
from crishim.app.run import run as run_process
from crishim.errors import CrishimError, InvalidSpec
from crishim.model.id_mapping import IdMapping

#: what docker and podman answer when the process never ran
NEVER_RAN = 125
_KILLED_BY_INT = 130
#: the last id of 32 bits means "none" (user_namespaces(7))
_ID_LIMIT = 0xFFFFFFFF


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The root, its limits, and the command."""
    parser.usage = "crishim run PATH|IMAGE [options] [-- CMD ...]"
    parser.add_argument("source", metavar="PATH|IMAGE", help="a directory (with a slash in it) or an image reference")
    parser.add_argument("--read-only", action="store_true", help="the root cannot be written to")
    parser.add_argument(
        "--network", choices=("none", "host"), default="none", help="a loopback of its own (none), or ours"
    )
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument("--user", metavar="UID[:GID]", help="numbers, or names of its /etc/passwd and /etc/group")
    parser.add_argument("--cwd", metavar="DIR", help="working directory, absolute")
    parser.add_argument(
        "--map-ids",
        metavar="ID[:COUNT]",
        help="a user namespace of its own: root is ID on the host, and COUNT (65536) ids follow",
    )
    parser.add_argument("--memory", type=int, metavar="BYTES", help="limit of memory and swap together")
    parser.add_argument(
        "--root", type=Path, default=Path("/var/lib/crishim"), metavar="DIR", help="images are kept in DIR/run"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"for its [images]; default {config.DEFAULT_PATH}, if it exists"
    )


def _ids(text: str | None) -> IdMapping | None:
    if text is None:
        return None
    first, _, count = text.partition(":")
    if not all(word.isascii() and word.isdigit() and len(word) <= 10 for word in (first, count or "65536")):
        raise InvalidSpec(f"--map-ids: {text!r} is not a number, or two with a colon between them")
    mapping = IdMapping(0, int(first), int(count or "65536"))
    if mapping.host_id < 1 or mapping.length < 1 or mapping.host_id + mapping.length > _ID_LIMIT:
        raise InvalidSpec(f"--map-ids: {text!r} is not within 1..{_ID_LIMIT - 1}")
    return mapping


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the process, 128 + signal when a signal ended it, 125 when it never ran."""
    try:
        return run_process(
            RunRequest(
                source=arguments.source,
                command=arguments.command_line,
                read_only=arguments.read_only,
                network=arguments.network,
                terminal=arguments.tty,
                env=tuple(arguments.env),
                user=arguments.user,
                cwd=arguments.cwd,
                memory_bytes=arguments.memory,
                ids=_ids(arguments.map_ids),
                root=arguments.root.absolute(),
                images=config.read(
                    arguments.config or config.DEFAULT_PATH, optional=arguments.config is None
                ).config.images,
            )
        )
    except CrishimError as error:
        print(f"crishim: {error}", file=sys.stderr)
        return NEVER_RAN
    except KeyboardInterrupt:
        return _KILLED_BY_INT
