"""`crishim why`: what happened to a pod or a container, and what ended it."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from crishim.cli.output import add_client_arguments, connect, print_json, visible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose story."""
    parser.add_argument("id", metavar="POD|CONTAINER", help="an id, the beginning of one, or a name")
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """The moments in order, then the verdict."""
    with connect(arguments) as client:
        story = json.loads(client.why(arguments.id))
    if arguments.json:
        print_json(story)
        return 0
    print("\n".join(visible(line) for line in lines(story)))
    return 0


def lines(story: dict[str, Any]) -> list[str]:
    """The story as text."""
    reason = f" ({story['reason']})" if story["reason"] else ""
    text = [f"pod {story['namespace']}/{story['name']} {story['sandbox_id'][:12]}: {story['state']}{reason}"]
    text += [f"  {_moment(each)}" for each in story["moments"]]
    for container in story["containers"]:
        identity = f"{container['name']} {container['id'][:12]}, attempt {container['attempt']}"
        text.append(f"container {identity}: {container['state']}")
        text += [f"  {_moment(each)}" for each in container["moments"]]
        text += [f"  {line}" for line in _verdict(container)]
    return text


def _verdict(container: dict[str, Any]) -> list[str]:
    found = []
    if container["exit_code"] is not None:
        signal = f", killed by {container['signal']}" if container["signal"] else ""
        sender = f", sender: {container['sender']}" if container["sender"] else ""
        found.append(f"why: {container['reason']}, exit code {container['exit_code']}{signal}{sender}")
    if container["message"]:
        found.append(f"     {container['message']}")
    if container["oom_kills"]:
        found.append(f"     the kernel killed {container['oom_kills']} of its processes for want of memory")
    if container["signal_to_exit_s"] is not None:
        found.append(f"     {container['signal_to_exit_s']:.3f} s from our last signal to its end")
    if container["log_bytes_lost"]:
        found.append(f"     {container['log_bytes_lost']} bytes of its output could not be written to the log")
    return found


def _moment(moment: dict[str, Any]) -> str:
    at = moment["at_ns"]
    if not at:
        return f"now                      {moment['what']}"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at // 1_000_000_000))
    return f"{stamp}.{at // 1_000_000 % 1000:03d}Z {moment['what']}"
