"""The log file of one container: whole lines appended, rotation between lines, and a full disk that is counted.

The monitor feeds what it read from the container's pipes or pty. The file lives in a directory that other pods may be
able to write (hostPath), so it is opened step by step without following links, and never blocks at the opening.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from crishim.errors import InvalidSpec
from crishim.logs.format import LINE_LIMIT_BYTES, format_lines, format_pieces, stamp

STDOUT = 1
STDERR = 2

_NAMES = {STDOUT: b"stdout", STDERR: b"stderr"}
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LogWriter:
    """Appends the output of one container to `path` below `directory`; one thread, no locks.

    Counters hold content bytes (without line ends, as `lost` and `written` are told apart line by line) and log lines,
    a P piece being one. `bytes_written + bytes_lost` is all that was fed, but for the unfinished tails still kept.
    """

    __slots__ = (
        "_fd",
        "_tails",
        "_torn",
        "_torn_done",
        "bytes_lost",
        "bytes_written",
        "directory",
        "last_errno",
        "lines_lost",
        "lines_written",
        "path",
    )

    def __init__(self, directory: bytes, path: bytes) -> None:
        """`directory` is absolute and chosen by the node; `path` is relative to it and not trusted."""
        self.directory = directory
        self.path = path
        self.bytes_written = 0
        self.lines_written = 0
        self.bytes_lost = 0
        self.lines_lost = 0
        #: errno of the last write that failed, 0 when none did
        self.last_errno = 0
        self._fd = -1
        #: stream to the bytes of a line whose end was not read yet
        self._tails = {STDOUT: b"", STDERR: b""}
        #: a formatted line that a full disk cut: it is ended before anything else is written
        self._torn = b""
        #: bytes of `_torn` that are in the file
        self._torn_done = 0

    def open(self) -> None:
        """Open the file for appending; missing directories are made (0755), the file too (0640).

        Raises InvalidSpec when the path leaves the directory, passes a symbolic link or is not a regular file of one
        name; OSError otherwise. Source: kubelet-side layout <log_directory>/<log_path>, openat(2).
        """
        self._fd = _open_below(self.directory, self.path)

    def reopen(self) -> None:
        """Go on in a new file at the same path, the old one having been renamed (ReopenContainerLog).

        No line is cut: a line whose end was not read yet goes to the new file, and so does a line that a full disk
        cut, which is taken back from the old file. On an error, those of `open`, the old file stays in use.
        """
        fd = _open_below(self.directory, self.path)
        self._end_torn_line()
        if self._torn:
            self._take_back_torn_line()
        old, self._fd = self._fd, fd
        if old >= 0:
            _close(old)

    def feed(self, stream: int, data: bytes) -> None:
        """Log what a read(2) of stdout (1) or stderr (2) returned. A disk that refuses is counted, never raised."""
        tail = self._tails[stream]
        if tail:
            data = tail + data
        end = data.rfind(b"\n") + 1
        now = stamp(time.time_ns())
        batch = b""
        if end:
            batch = format_lines(data[:end], _NAMES[stream], now)
        rest = len(data) - end
        if rest > LINE_LIMIT_BYTES:
            # Only full pieces leave, and the rest is never empty: the line's own end still decides its last piece.
            cut = len(data) - 1 - (rest - 1) % LINE_LIMIT_BYTES
            batch += format_pieces(data[end:cut], _NAMES[stream], now)
            end = cut
        self._tails[stream] = data[end:] if end else data
        if batch:
            self._write(batch, _head_bytes(batch), end)

    def end(self, stream: int) -> None:
        """The stream is over: an unfinished line is written as a P line, as containerd does. Can be called again."""
        tail = self._tails[stream]
        if tail:
            self._tails[stream] = b""
            batch = format_pieces(tail, _NAMES[stream], stamp(time.time_ns()))
            self._write(batch, _head_bytes(batch), len(tail))

    def close(self) -> None:
        """End both streams and close the file. A line that a full disk cut is taken back and counted as lost."""
        self.end(STDOUT)
        self.end(STDERR)
        self._end_torn_line()
        if self._torn:
            self._count_lost(self._torn, _head_bytes(self._torn))
            self._take_back_torn_line()
            self._torn = b""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    def _write(self, batch: bytes, head: int, fed: int) -> None:
        """Append whole lines, each with `head` bytes before its content, made of `fed` bytes of output.

        Lines that do not fit are counted as lost.
        """
        if self._torn and not self._end_torn_line():
            self._count_lost(batch, head)
            return
        done = self._append(batch)
        if done == len(batch):
            lines, content = _sizes(batch, head, fed)
        else:
            first = batch.rfind(b"\n", 0, done) + 1
            rest = first
            if done > first:
                rest = batch.index(b"\n", done) + 1
                self._torn, self._torn_done = batch[first:rest], done - first
            self._count_lost(batch[rest:], head)
            lines = batch.count(b"\n", 0, first)
            content = first - lines * (head + 1)
        self.lines_written += lines
        self.bytes_written += content

    def _append(self, batch: bytes) -> int:
        """Bytes of `batch` that reached the file; fewer than all when write(2) failed."""
        done = 0
        try:
            done = os.write(self._fd, batch)
            while done < len(batch):
                done += os.write(self._fd, memoryview(batch)[done:])
        except OSError as error:
            self.last_errno = error.errno or errno.EIO
        return done

    def _end_torn_line(self) -> bool:
        """Write what is missing of the line that a full disk cut; False when the disk still refuses."""
        if not self._torn:
            return True
        self._torn_done += self._append(self._torn[self._torn_done :])
        if self._torn_done < len(self._torn):
            return False
        self.lines_written += 1
        self.bytes_written += len(self._torn) - _head_bytes(self._torn) - 1
        self._torn = b""
        return True

    def _take_back_torn_line(self) -> None:
        """Cut the begun line off the file, so that the file ends with a whole line; it is kept to be written again."""
        try:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - self._torn_done)
        except OSError as error:
            self.last_errno = error.errno or errno.EIO
        self._torn_done = 0

    def _count_lost(self, lines: bytes, head: int) -> None:
        count = lines.count(b"\n")
        self.lines_lost += count
        self.bytes_lost += len(lines) - count * (head + 1)


def _sizes(batch: bytes, head: int, fed: int) -> tuple[int, int]:
    """Lines of a batch and their content bytes, from its growth: counting newlines would take as long as formatting.

    Each line grew by its head, and a P piece by a newline besides. The pieces of up to 512 KiB are fewer than `head`.
    """
    if fed > 32 * LINE_LIMIT_BYTES:
        lines = batch.count(b"\n")
        return lines, len(batch) - lines * (head + 1)
    lines, pieces = divmod(len(batch) - fed, head)
    return lines, fed - (lines - pieces)


def _head_bytes(line: bytes) -> int:
    """Length of "time stream tag " of formatted lines; the three words hold no space."""
    return line.index(b" ", line.index(b" ", line.index(b" ") + 1) + 1) + 1


def _open_below(directory: bytes, path: bytes) -> int:
    """Descriptor of the regular file `path` below `directory`; the caller owns it."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if not directory.startswith(b"/") or path.startswith(b"/") or not names or b".." in names or b"\0" in path:
        raise InvalidSpec(f"log path {os.fsdecode(path)!r} does not name a file below {os.fsdecode(directory)!r}")
    os.makedirs(directory, 0o755, exist_ok=True)
    folder = os.open(directory, _FOLDER_FLAGS & ~os.O_NOFOLLOW)  # the node's own path may have links
    try:
        for name in names[:-1]:
            folder, outer = _open_folder(folder, name), folder
            os.close(outer)
        fd = os.open(names[-1], _FLAGS, 0o640, dir_fd=folder)
    except OSError as error:
        # ENXIO: a FIFO that nobody reads, or a socket; ENOTDIR: a link or a file where a directory should be.
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
            raise
        raise _refusal(directory, path) from error
    finally:
        os.close(folder)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise _refusal(directory, path)
    return fd


def _open_folder(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        pass  # made meanwhile; the open below tells what it is
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent)


def _refusal(directory: bytes, path: bytes) -> InvalidSpec:
    return InvalidSpec(
        f"log path {os.fsdecode(path)!r} below {os.fsdecode(directory)!r} is a symbolic link or not a regular file"
    )


def _close(fd: int) -> None:
    """Close; an error of delayed writing is not ours to repair and the descriptor is gone either way (close(2))."""
    try:
        os.close(fd)
    except OSError:
        pass
