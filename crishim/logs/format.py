"""Lines of the CRI log format, as kubelet reads them: `<RFC3339Nano> <stdout|stderr> <P|F> <content>\\n`.

Pure: bytes in, bytes out. Short lines are never walked one by one: one `bytes.replace` puts the prefix before all
lines of a read, so they share their time, that of the read that completed them. `writer.py` keeps unfinished lines.
"""

from __future__ import annotations

import time

#: longest content of one log line; longer lines become P pieces of this size and a last F piece
LINE_LIMIT_BYTES = 16384

# The part of the time down to the second, kept because most calls fall in the second of the call before.
_second = -1
_second_text = b""


def stamp(now_ns: int) -> bytes:
    """CLOCK_REALTIME in ns as RFC 3339 in UTC with nine digits of fraction ("2026-11-24T10:00:00.123456789Z")."""
    global _second, _second_text
    second, fraction = divmod(now_ns, 1_000_000_000)
    if second != _second:
        _second_text = b"%04d-%02d-%02dT%02d:%02d:%02d" % time.gmtime(second)[:6]
        _second = second
    return b"%b.%09dZ" % (_second_text, fraction)


def format_lines(data: bytes, stream: bytes, stamp: bytes) -> bytes:
    """Log lines of `data`, which must be empty or end with a newline; stream is b"stdout" or b"stderr".

    Every other byte is kept as it is, carriage returns and NUL included.
    """
    head = b"%b %b " % (stamp, stream)
    out = []
    done = _start_of_long_line(data, 0)
    if done:
        out.append(_format_short(data[: done - 1], head))
    while done < len(data):
        end = data.index(b"\n", done)
        last = end - 1 - (end - done - 1) % LINE_LIMIT_BYTES
        out.append(format_pieces(data[done:last], stream, stamp))
        after = _start_of_long_line(data, end + 1)
        out.append(_format_short(data[last : after - 1], head))
        done = after
    return b"".join(out)


def format_pieces(data: bytes, stream: bytes, stamp: bytes) -> bytes:
    """P lines of `data`, a part of a line without its newline, LINE_LIMIT_BYTES each; the last may be shorter."""
    head = b"%b %b P " % (stamp, stream)
    return b"".join(
        b"%b%b\n" % (head, data[start : start + LINE_LIMIT_BYTES]) for start in range(0, len(data), LINE_LIMIT_BYTES)
    )


def _format_short(lines: bytes, head: bytes) -> bytes:
    """F lines of `lines`, given without the last newline; none may be longer than the limit."""
    head += b"F "
    return b"%b%b\n" % (head, lines.replace(b"\n", b"\n" + head))


def _start_of_long_line(data: bytes, start: int) -> int:
    """Where the first line over the limit begins at or after `start`; len(data) when there is none.

    One search per 16 KiB, not per line: the window of limit + 1 bytes from a line's start must hold a newline.
    """
    end = len(data)
    while end - start > LINE_LIMIT_BYTES + 1:
        newline = data.rfind(b"\n", start, start + LINE_LIMIT_BYTES + 1)
        if newline < 0:
            return start
        start = newline + 1
    # What is left fits in one window, and it ends with a newline.
    return end
