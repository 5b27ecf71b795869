"""Messages over the private pipes between the parent and one worker, and the descriptors that both have.

The worker's ends block, the parent's ends never do. `Outbox` buffers what a busy or stopped worker does not read yet,
and `Inbox` puts together messages that arrive in parts. So no worker can hold up the parent, and a parent and a worker
that both send 200 MB do not wait for each other for ever.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections import deque
from contextlib import suppress
from itertools import islice
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

HEADER = struct.Struct("!Q")
READ_SIZE = 1 << 16
"""Bytes per read. A pipe holds no more, and allocating a larger buffer costs more than the read."""
MAX_JOINED_SIZE = 4096
"""Bytes. Up to this size a message is joined to its header, so that one write sends both."""
MAX_BUFFERS = 64
"""Buffers per `writev` call; Linux takes up to 1,024."""
STANDARD = 3
"""The first descriptor above stdin, stdout and stderr."""


def send(fd: int, message: bytes) -> None:
    """In the worker: write a whole message, waiting as long as it takes."""
    header = HEADER.pack(len(message))
    if len(message) <= MAX_JOINED_SIZE:
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
        """Return the next whole message, waiting as long as it takes; None at the end of the pipe."""
        if not self._read_until(HEADER.size):
            return None
        end = HEADER.size + HEADER.unpack_from(self._unread)[0]
        if not self._read_until(end):
            return None
        message = bytes(memoryview(self._unread)[HEADER.size : end])
        del self._unread[:end]
        return message

    def _read_until(self, size: int) -> bool:
        while len(self._unread) < size:
            data = os.read(self._fd, READ_SIZE)
            if not data:
                return False
            self._unread += data
        return True


class Outbox:
    """The parent's writing end: `post` never blocks, `flush` writes what the pipe takes now."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._unsent: deque[memoryview] = deque()

    @property
    def pending(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self._unsent)

    def post(self, message: bytes) -> None:
        """Add a message to the buffer and flush."""
        header = HEADER.pack(len(message))
        if len(message) <= MAX_JOINED_SIZE:
            self._unsent.append(memoryview(header + message))
        else:
            self._unsent += (memoryview(header), memoryview(message))
        self.flush()

    def flush(self) -> None:
        """Write as much as the pipe takes now. An exited worker is no error here: the executor sees its exit."""
        try:
            while self._unsent:
                self._drop(os.writev(self.fd, list(islice(self._unsent, MAX_BUFFERS))))
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
    """The parent's reading end: returns the messages that are complete."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._partial = bytearray()
        self.ended = False

    def messages(self) -> list[bytes]:
        """Read all available bytes, and return the complete messages."""
        while not self.ended:
            try:
                data = os.read(self.fd, READ_SIZE)
            except BlockingIOError:
                break
            self.ended = not data
            self._partial += data
            # A short read has emptied the pipe. Another one would be a system call for nothing.
            if len(data) < READ_SIZE:
                break
        return self._complete()

    def _complete(self) -> list[bytes]:
        messages = []
        start = 0
        while len(self._partial) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._partial, start)
            end = start + HEADER.size + size
            if len(self._partial) < end:
                break
            messages.append(bytes(memoryview(self._partial)[start + HEADER.size : end]))
            start = end
        del self._partial[:start]
        return messages


class Waker:
    """Lets another thread, or a signal, end a `wait`."""

    def __init__(self) -> None:
        self.reader, self._writer = map(above_standard, os.pipe())
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def wake(self) -> None:
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:  # the pipe is full, so it wakes up anyway
            return

    def clear(self) -> None:
        os.read(self.reader, 4096)

    def close(self) -> None:
        if self._writer >= 0:
            os.close(self.reader)
            os.close(self._writer)
            self.reader = self._writer = -1


class InheritedFile:
    """The descriptor of a nameless file. Pickled for a worker, it becomes a descriptor there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.fd),)


def _received(duplicate: Any) -> InheritedFile:
    return InheritedFile(duplicate.detach())


def nameless_file() -> int:
    """Make a file that vanishes with its last descriptor, in memory where that is possible."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # an old kernel
            return above_standard(os.memfd_create("poolsave"))
    with tempfile.TemporaryFile(buffering=0) as file:
        return _duplicate(file.fileno())


def fill_standard() -> None:
    """Open /dev/null as stdin, stdout and stderr where the program was started without these.

    Else a fork server and fresh workers get their own channels under these numbers, to which a function then prints.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) < STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)


def above_standard(fd: int) -> int:
    """Move a descriptor above stdin, stdout and stderr.

    A program that was started without these gets their numbers for new files. A function or a C library would then
    write to such a file, or close it, as if it were stdout.
    """
    if fd >= STANDARD:
        return fd
    try:
        return _duplicate(fd)
    finally:
        os.close(fd)


def _duplicate(fd: int) -> int:
    import fcntl  # not at the top: Windows has no fcntl and imports this module too

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD)


def pipe() -> tuple[Connection[Any, Any], Connection[Any, Any]]:
    """Return the reading and the writing end of a new pipe."""
    reader, writer = map(above_standard, os.pipe())
    return Connection(reader, writable=False), Connection(writer, readable=False)
