"""`crishim images`: the images of a node."""

from __future__ import annotations

import argparse

from crishim.app.client import messages
from crishim.cli.output import add_client_arguments, connect, print_json, print_table, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--address and --json."""
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A line per name, or the id of an image without one."""
    with connect(arguments) as client:
        images = client.images("ListImages", messages.ListImagesRequest()).images
    if arguments.json:
        print_json(
            [
                {
                    "id": image.id,
                    "tags": list(image.repo_tags),
                    "digests": list(image.repo_digests),
                    "size_bytes": image.size,
                    "pinned": image.pinned,
                }
                for image in images
            ]
        )
        return 0
    rows = [
        [name, image.id.removeprefix("sha256:")[:12], size(image.size)]
        for image in images
        for name in (*image.repo_tags, *(() if image.repo_tags else image.repo_digests[:1] or ("-",)))
    ]
    print_table(["IMAGE", "ID", "SIZE"], rows)
    return 0
