"""The entry of the command line: `crishim COMMAND`. A command's module is loaded when it is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import crishim
from crishim.errors import CrishimError

#: command to its module and what it does; a module has `add_arguments(parser)` and `run(arguments) -> exit status`
COMMANDS = {
    "serve": ("crishim.cli.serve", "serve CRI to a kubelet"),
    "config": ("crishim.cli.config", "show the configuration, and the file that each value is from"),
    "run": ("crishim.cli.run", "run one isolated process, without a server"),
    "demo": ("crishim.cli.demo", "start a server and run a pod on it, step by step"),
    "ps": ("crishim.cli.ps", "list pods and containers"),
    "why": ("crishim.cli.why", "tell what happened to a pod or container"),
    "stuck": ("crishim.cli.stuck", "list what the server is working on, and what it waits for"),
    "gc": ("crishim.cli.gc", "look for what belongs to nobody, and free it"),
    "images": ("crishim.cli.images", "list images"),
    "pull": ("crishim.cli.pull", "pull an image from a registry"),
    "load": ("crishim.cli.load", "load images from an archive"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for an error (one sentence on standard error), 2 for wrong arguments."""
    words, command_line = _split(list(sys.argv[1:] if argv is None else argv))
    parser = argparse.ArgumentParser(prog="crishim", description="A Kubernetes CRI runtime with its own executor.")
    parser.add_argument("--version", action="version", version=f"crishim {crishim.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if words[:1] == [name]:  # the arguments of the others need not be known, nor their modules loaded
            import_module(module).add_arguments(command)
    arguments = parser.parse_args(words)
    arguments.command_line = command_line
    try:
        status: int = import_module(COMMANDS[arguments.command][0]).run(arguments)
        return status
    except CrishimError as error:
        print(f"crishim: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1


def _split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Our words, and the command line that `run` has after "--": argparse would want it right behind the source."""
    if words[:1] != ["run"] or "--" not in words:
        return words, ()
    mark = words.index("--")
    return words[:mark], tuple(words[mark + 1 :])


if __name__ == "__main__":
    sys.exit(main())
