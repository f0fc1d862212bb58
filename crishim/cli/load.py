"""`crishim load ARCHIVE`: the images of an OCI layout or docker-save archive into the node's store."""

from __future__ import annotations

import argparse
from pathlib import Path

from crishim.cli.output import add_client_arguments, connect, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The archive."""
    parser.add_argument("archive", metavar="ARCHIVE", type=Path, help="a tar, also compressed; the server reads it")
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints an id and its names per image."""
    with connect(arguments) as client:
        images = client.load(str(arguments.archive.absolute())).images
    if arguments.json:
        print_json([{"id": image.id, "tags": list(image.repo_tags)} for image in images])
        return 0
    for image in images:
        print(image.id, *image.repo_tags)
    return 0
