"""Messages over the private pipes between the parent and one worker.

The worker's ends block. The parent's ends never do: what a worker is too busy (or too stopped) to read stays in a
buffer here, and a message that arrives in pieces is put together here, so that no worker can hold up the parent, and
a parent and a worker that both send 200 MB cannot wait for each other for ever.
"""

from __future__ import annotations

import os
import struct
from collections import deque

__all__ = ["Inbox", "Outbox", "Waker", "receive", "send"]

HEADER = struct.Struct("!Q")
PIECE = 1 << 20


def send(fd: int, message: bytes) -> None:
    """Write a whole message, waiting as long as it takes (worker's side)."""
    header = HEADER.pack(len(message))
    if len(message) <= 4096:
        _write_all(fd, header + message)
        return
    _write_all(fd, header)
    _write_all(fd, message)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int) -> bytes | None:
    """Read a whole message, waiting as long as it takes; None at the end of the pipe (worker's side)."""
    header = _read_exactly(fd, HEADER.size)
    if header is None:
        return None
    return _read_exactly(fd, HEADER.unpack(header)[0])


def _read_exactly(fd: int, size: int) -> bytes | None:
    piece = os.read(fd, min(size, PIECE)) if size else b""
    if len(piece) == size:
        return piece
    gathered = bytearray(piece)
    while len(gathered) < size:
        if not piece:
            return None
        piece = os.read(fd, min(size - len(gathered), PIECE))
        gathered += piece
    return bytes(gathered)


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
        if len(message) <= 4096:
            self._unsent.append(memoryview(header + message))
        else:
            self._unsent += (memoryview(header), memoryview(message))
        self.flush()

    def flush(self) -> None:
        """Write as much as the pipe takes now. A worker that is gone is noticed elsewhere, by its end."""
        try:
            while self._unsent:
                written = os.write(self.fd, self._unsent[0])
                if written < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][written:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent.clear()


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
        self.reader, self._writer = os.pipe()
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
