"""`crishim serve`: a server until SIGTERM."""

from __future__ import annotations

import argparse
from pathlib import Path

from crishim import config
from crishim.app.serve import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the configuration is, and what is given in its place."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"default {config.DEFAULT_PATH}, if it exists; FILE.d/*.toml is read too",
    )
    parser.add_argument("--listen", metavar="unix://PATH", help="CRI socket (server.listen)")
    parser.add_argument("--root", metavar="DIR", help="what survives a power cut (server.root)")
    parser.add_argument("--state", metavar="DIR", help="what ends with the boot (server.state)")
    parser.add_argument("--metrics", metavar="HOST:PORT", help='"" for none (server.metrics)')
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (server.log_level)")
    parser.add_argument("--network", metavar="MODE", help="cni or bridge (network.mode)")
    parser.add_argument("--json", action="store_true", help="accepted for uniformity; a server prints no result")


def run(arguments: argparse.Namespace) -> int:
    """Serve; 0 after SIGTERM."""
    path, optional = arguments.config or config.DEFAULT_PATH, arguments.config is None
    overrides = {
        "server.listen": arguments.listen,
        "server.root": arguments.root,
        "server.state": arguments.state,
        "server.metrics": arguments.metrics,
        "server.log_level": arguments.log_level,
        "network.mode": arguments.network,
    }
    serve(lambda: config.read(path, overrides, optional=optional).config)
    return 0
