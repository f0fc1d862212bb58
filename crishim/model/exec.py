"""What an exec that ran to its end gave back (api.proto ExecSyncResponse)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Output and exit code of one exec; `code` is 0..255 or 128 + signal. Output beyond the bound is dropped."""

    stdout: bytes
    stderr: bytes
    code: int
