"""Our own files on a disk that may be full or broken: what goes wrong there, as errors that a caller can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crishim.errors import Exhausted, Unavailable


@contextmanager
def own_files(path: Path) -> Iterator[None]:
    """Around work on files of the store: an OSError becomes Exhausted (no space, quota) or Unavailable, naming `path`.

    Never around the reading of a file that a client named.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Exhausted(f"{path} cannot be written: the disk is full") from error
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write everything; a full disk may take a part before it refuses."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
