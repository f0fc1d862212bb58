"""What the demo needs besides a server: an image made from programs of this machine."""

from __future__ import annotations

from pathlib import Path

from crishim.images.demo import build_demo_image

IMAGE = "crishim.local/demo:latest"


def build_image(path: Path) -> str:
    """Write the archive of the demo's image; its id. Unavailable when the machine has no programs for it."""
    return build_demo_image(path, IMAGE)
