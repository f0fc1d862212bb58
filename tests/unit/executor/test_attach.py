"""Clients of a container's stdin: who waits for whom, and that nobody who waits keeps the monitor awake."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from crishim.executor.attach import Client, Stdin
from crishim.executor.loop import Loop

TYPED = b"\x00" + b"x" * 1000


class Attached:
    """A container's stdin, its reader's end, and the server's ends of its clients."""

    def __init__(self) -> None:
        self.loop = Loop(lambda: None)
        self.reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stdin = Stdin(once=False, terminal=False)
        self.stdin.fd = writing
        self.ends: list[socket.socket] = []

    def attach(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        Client(self.loop, self.stdin, ours)
        self.ends.append(theirs)
        return theirs

    def fill(self) -> None:
        """The container reads nothing, and a client has sent more than the pipe takes."""
        while not self.stdin.pending:
            self.stdin.feed(self.loop, bytes(1 << 16))

    def turn(self) -> int:
        """Let the loop take one round; how many callbacks there were to call."""
        events = self.loop._epoll.poll(0)
        for fd, _ in events:
            self.loop._callbacks[fd]()
        return len(events)

    def read(self) -> bytes:
        """What the pipe has."""
        try:
            return os.read(self.reading, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for client in list(self.stdin.clients):
            client.close()
        self.stdin.close(self.loop)
        for end in self.ends:
            end.close()
        os.close(self.reading)
        self.loop.close()


@pytest.fixture
def attached() -> Iterator[Attached]:
    made = Attached()
    yield made
    made.close()


def test_input_that_the_container_does_not_take_waits_with_its_client(attached: Attached) -> None:
    end = attached.attach()
    attached.fill()
    end.send(TYPED)
    assert attached.turn() == 0


def test_a_client_that_comes_while_input_waits_is_left_alone_too(attached: Attached) -> None:
    attached.fill()
    attached.attach().send(TYPED)
    assert attached.turn() == 0


def test_output_for_a_client_does_not_make_its_waiting_input_heard(attached: Attached) -> None:
    end = attached.attach()
    attached.fill()
    end.send(TYPED)
    (client,) = attached.stdin.clients
    for _ in range(20):
        client.send(1, bytes(1 << 15))  # more than its socket holds
    received = 0
    while attached.turn() or received < 20:
        received += len(end.recv(1 << 16)) // (1 << 15)
    assert attached.turn() == 0


def test_a_client_that_leaves_while_its_input_waits_keeps_nobody_awake_and_loses_none(attached: Attached) -> None:
    end = attached.attach()
    attached.fill()
    end.send(TYPED)
    end.close()
    attached.turn()
    assert attached.turn() == 0
    received = b""
    while attached.stdin.clients:
        received += attached.read()
        attached.turn()
    assert (received + attached.read()).count(b"x") == 1000


def test_input_after_the_end_of_stdin_is_dropped(attached: Attached) -> None:
    end = attached.attach()
    attached.fill()
    end.send(TYPED)
    attached.stdin.close(attached.loop)
    assert attached.turn() == 1
    assert attached.turn() == 0
