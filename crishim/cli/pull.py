"""`crishim pull REFERENCE`: an image from its registry into the node's store."""

from __future__ import annotations

import argparse
import os

from crishim.app.client import messages
from crishim.cli.output import add_client_arguments, connect, print_json
from crishim.errors import InvalidSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The reference, and who pulls."""
    parser.add_argument("reference", metavar="REFERENCE", help='such as "busybox" or "registry.example/app@sha256:..."')
    parser.add_argument("--user", metavar="NAME", help="the password is taken from CRISHIM_PASSWORD")
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the id."""
    request = messages.PullImageRequest(image=messages.ImageSpec(image=arguments.reference))
    if arguments.user:
        password = os.environ.get("CRISHIM_PASSWORD")
        if password is None:
            raise InvalidSpec("--user needs the password in the environment variable CRISHIM_PASSWORD")
        request.auth.username, request.auth.password = arguments.user, password
    with connect(arguments) as client:
        image_id = client.images("PullImage", request, timeout_s=None).image_ref
    if arguments.json:
        print_json({"id": image_id, "reference": arguments.reference})
    else:
        print(image_id)
    return 0
