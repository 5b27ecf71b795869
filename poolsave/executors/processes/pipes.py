"""Messages over the private pipes between the parent and one worker.

The worker's ends block. The parent's ends never do: what a worker is too busy (or too stopped) to read stays in a
buffer here, and a message that arrives in pieces is put together here, so that no worker can hold up the parent, and
a parent and a worker that both send 200 MB cannot wait for each other for ever.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from itertools import islice

from .descriptors import above_standard

HEADER = struct.Struct("!Q")
PIECE = 1 << 16
"""Bytes that are read at once; a pipe holds no more, and a larger buffer costs more than the reading."""
SMALL = 4096
"""Bytes of a message up to which it is copied to stand behind its header, so that both are one piece."""
MOST_AT_ONCE = 64
"""Messages that are written by one call; Linux takes up to 1,024."""


def send(fd: int, message: bytes) -> None:
    """Write a whole message, waiting as long as it takes (worker's side)."""
    header = HEADER.pack(len(message))
    if len(message) <= SMALL:
        _write_all(fd, header + message)
        return
    _write_all(fd, header)
    _write_all(fd, message)


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    if written == len(data):
        return
    rest = memoryview(data)[written:]
    while rest:
        rest = rest[os.write(fd, rest) :]


class Reader:
    """The worker's reading end, which takes several small messages with one read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unread = bytearray()

    def receive(self) -> bytes | None:
        """Give the next whole message, waiting as long as it takes; None at the end of the pipe."""
        if not self._has(HEADER.size):
            return None
        end = HEADER.size + HEADER.unpack_from(self._unread)[0]
        if not self._has(end):
            return None
        message = bytes(memoryview(self._unread)[HEADER.size : end])
        del self._unread[:end]
        return message

    def _has(self, size: int) -> bool:
        while len(self._unread) < size:
            piece = os.read(self._fd, PIECE)
            if not piece:
                return False
            self._unread += piece
        return True


class Outbox:
    """The parent's writing end: `post` never blocks, `flush` writes what the pipe takes now."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._unsent: deque[memoryview] = deque()

    @property
    def pending(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._unsent)

    def post(self, message: bytes) -> None:
        """Take a message and write as much of everything as possible."""
        header = HEADER.pack(len(message))
        if len(message) <= SMALL:
            self._unsent.append(memoryview(header + message))
        else:
            self._unsent += (memoryview(header), memoryview(message))
        self.flush()

    def flush(self) -> None:
        """Write as much as the pipe takes now. A worker that is gone is noticed elsewhere, by its end."""
        try:
            while self._unsent:
                self._drop(os.writev(self.fd, list(islice(self._unsent, MOST_AT_ONCE))))
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent.clear()

    def _drop(self, written: int) -> None:
        while self._unsent and written >= len(self._unsent[0]):
            written -= len(self._unsent.popleft())
        if written:
            self._unsent[0] = self._unsent[0][written:]


class Inbox:
    """The parent's reading end: gives the messages that are complete by now."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._partial = bytearray()
        self.ended = False

    def messages(self) -> list[bytes]:
        """Read what is there, to the last byte, and give every complete message."""
        while not self.ended:
            try:
                piece = os.read(self.fd, PIECE)
            except BlockingIOError:
                break
            self.ended = not piece
            self._partial += piece
            if len(piece) < PIECE:
                break
        return self._complete()

    def _complete(self) -> list[bytes]:
        found = []
        start = 0
        while len(self._partial) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._partial, start)
            end = start + HEADER.size + size
            if len(self._partial) < end:
                break
            found.append(bytes(memoryview(self._partial)[start + HEADER.size : end]))
            start = end
        del self._partial[:start]
        return found


class Waker:
    """Lets another thread, or a signal, end a `wait`."""

    def __init__(self) -> None:
        self.reader, self._writer = map(above_standard, os.pipe())
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def wake(self) -> None:
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:  # full: it will wake up anyway
            return

    def clear(self) -> None:
        os.read(self.reader, 4096)

    def close(self) -> None:
        if self._writer >= 0:
            os.close(self.reader)
            os.close(self._writer)
            self.reader = self._writer = -1
