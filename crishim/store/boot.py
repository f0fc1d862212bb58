"""Which boot of the machine this is: containers of another boot are gone, whatever their records say."""

from __future__ import annotations

from pathlib import Path


def current_boot_id() -> str:
    """The kernel's random id of this boot, 36 characters. Source: random(4), /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
