"""The queue of bytes that nobody has read yet: order, its bound, and its file."""

from __future__ import annotations

import asyncio
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from crishim.streaming.spool import Spool, SpoolFiles


async def drained(spool: Spool) -> bytes:
    parts = []
    while (data := await spool.get()) is not None:
        parts.append(data)
    return b"".join(parts)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=20))
def test_bytes_come_out_in_order_whether_they_were_in_memory_or_not(steps: list[tuple[bytes, bool]]) -> None:
    async def run() -> None:
        spool = Spool(memory_bytes=16, file_bytes=1 << 20)
        taken = b""
        for data, takes in steps:
            spool.put(data)
            if takes and spool.size:
                taken += await spool.get() or b""
        spool.end()
        taken += await drained(spool)
        assert taken == b"".join(data for data, _ in steps)
        assert spool.size == 0
        assert spool.taken_bytes == len(taken)
        spool.close()

    asyncio.run(run())


def test_a_full_spool_has_room_again_when_half_of_it_was_taken() -> None:
    async def run() -> None:
        spool = Spool(memory_bytes=10, file_bytes=100_000)
        while not spool.is_full:
            spool.put(b"x" * 20_000)
        waiting = asyncio.ensure_future(spool.wait_room())
        await spool.get()
        assert not waiting.done()
        await spool.get()
        await asyncio.wait_for(waiting, 5)
        spool.close()

    asyncio.run(run())


def test_the_file_of_a_long_transfer_is_no_larger_than_twice_what_may_wait() -> None:
    async def run() -> None:
        spool = Spool(memory_bytes=1000, file_bytes=200_000)
        sent, taken, sizes = bytearray(), bytearray(), []
        for number in range(400):
            while not spool.is_full and len(sent) - len(taken) < 150_000:  # a reader that is always behind
                piece = bytes([number % 256]) * 20_000
                sent += piece
                spool.put(piece)
            taken += await spool.get() or b""
            sizes.append(os.fstat(spool._file).st_size)
        spool.end()
        taken += await drained(spool)
        spool.close()
        assert taken == sent
        assert len(sent) > 10_000_000
        assert max(sizes) < 500_000

    asyncio.run(run())


def test_a_closed_spool_wakes_who_waits_drops_what_comes_and_has_no_file() -> None:
    async def run() -> None:
        before = set(os.listdir("/proc/self/fd"))
        spool = Spool(memory_bytes=1, file_bytes=10)
        spool.put(b"0123456789abcdef")
        waiting = asyncio.ensure_future(spool.wait_room())
        await asyncio.sleep(0)
        spool.close()
        await asyncio.wait_for(waiting, 5)
        spool.put(b"late")
        assert await spool.get() is None
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(run())


def test_spools_share_what_their_files_may_take_and_who_reads_goes_on() -> None:
    async def run() -> None:
        files = SpoolFiles(limit_bytes=100_000)
        stuck = [Spool(memory_bytes=10, file_bytes=60_000, files=files) for _ in range(3)]
        for spool in stuck:
            for _ in range(100):
                if spool.is_full:
                    break
                spool.put(bytes(1000))
        assert [spool.size for spool in stuck] == [61_000, 39_000, 1000]
        assert files.is_full
        read = Spool(memory_bytes=10, file_bytes=60_000, files=files)
        for number in range(200):
            await asyncio.wait_for(read.wait_room(), 5)
            read.put(b"%03d" % number + bytes(997))
            assert (await read.get() or b"")[:3] == b"%03d" % number
        stuck[0].close()
        stuck[0].close()
        assert not files.is_full
        for spool in (*stuck, read):
            spool.close()
        files.grew(100_000)
        assert files.is_full, "all was given back, once"

    asyncio.run(run())
