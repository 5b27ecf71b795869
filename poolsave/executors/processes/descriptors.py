"""File descriptors for worker processes: shared files, pipes, and a descriptor that reports a process's exit."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

STANDARD = 3
"""The first descriptor above stdin, stdout and stderr."""
NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL)
"""What `pidfd_open` fails with on an old kernel."""


class InheritedFile:
    """The descriptor of a nameless file. Pickled for a worker, it becomes a descriptor there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.fd),)


def _received(duplicate: Any) -> InheritedFile:
    return InheritedFile(duplicate.detach())


def reserved_file(size: int) -> int:
    """Make a nameless file of `size` bytes, in memory where that is possible, with its space allocated.

    /dev/shm may be full: all processes of a Docker container share 64 MB. Writing to a mapped file without space ends
    the process by SIGBUS.

    Raises:
        OSError: if there is no space, or no descriptor.
    """
    fd = nameless_file()
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.pwrite(fd, bytes(size), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def nameless_file() -> int:
    """Make a file that vanishes with its last descriptor, in memory where that is possible."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # an old kernel
            return above_standard(os.memfd_create("poolsave"))
    with tempfile.TemporaryFile(buffering=0) as file:
        return _duplicate(file.fileno())


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


def process_descriptor(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process exits; None if the system offers none.

    A process's sentinel is a pipe. It also ends if a function closes descriptors that are not its own, or if the fork
    server exits, and it does not end while a child that has inherited it lives.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return above_standard(os.pidfd_open(pid))
    except (ProcessLookupError, PermissionError):  # exited and reaped by the host; a sandbox
        return None
    except OSError as error:
        if error.errno in NO_SUCH_CALL:
            return None
        raise
