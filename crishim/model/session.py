"""Streaming sessions: what was asked for when its URL was made, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """CRI `ExecRequest`, validated; container_id is the full id."""

    container_id: str
    args: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """CRI `AttachRequest`, validated; container_id is the full id."""

    container_id: str
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


@dataclass(frozen=True, slots=True)
class PortForwardRequest:
    """CRI `PortForwardRequest`, validated; ports are used by WebSocket clients alone, SPDY names its own."""

    sandbox_id: str
    ports: tuple[int, ...] = ()


SessionRequest = ExecRequest | AttachRequest | PortForwardRequest


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended: 0..255, or 128 + signal. Of an attach: 0, whatever the container's code was."""

    code: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The session came to nothing or was cut; the sentence is for the user."""

    message: str


Ending = Exited | Failed
