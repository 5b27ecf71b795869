"""Descriptors that a worker gets from its parent, whichever way it is started, and those that tell of its end."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

STANDARD = 3
"""Descriptors below are stdin, stdout and stderr, whatever is open there."""
NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL)
"""An old kernel."""


class InheritedFile:
    """The descriptor of a file without a name; pickled for a worker that is started afresh, it is one there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.fd),)


def _received(duplicate: Any) -> InheritedFile:
    return InheritedFile(duplicate.detach())


def reserved_file(size: int) -> int:
    """Make a file without a name, in memory where that is possible, that has its room already.

    /dev/shm may be full (it holds 64 MB in a Docker container, for all that runs there), and to write to a mapped file
    for which there is no room ends the process by SIGBUS.

    Raises:
        OSError: if there is no room, or no descriptor.
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
    """Make a file that nothing can leave behind, in memory where that is possible."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # an old kernel
            return above_standard(os.memfd_create("poolsave"))
    with tempfile.TemporaryFile(buffering=0) as file:
        return _duplicate(file.fileno())


def above_standard(fd: int) -> int:
    """Move a descriptor out of the way of what a function, or a library in C, may write to or close as stdout.

    That is what it gets in a program that was started without stdin, stdout or stderr.
    """
    if fd >= STANDARD:
        return fd
    try:
        return _duplicate(fd)
    finally:
        os.close(fd)


def _duplicate(fd: int) -> int:
    import fcntl  # Windows has none, and imports this module all the same

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD)


def pipe() -> tuple[Connection[Any, Any], Connection[Any, Any]]:
    """Give the reading and the writing end of a pipe."""
    reader, writer = map(above_standard, os.pipe())
    return Connection(reader, writable=False), Connection(writer, readable=False)


def process_descriptor(pid: int) -> int | None:
    """Give a descriptor that is readable when that process has ended, and not before; None where there is none.

    A process's sentinel is a pipe, which also ends if a function closes descriptors that it does not know, or if the
    fork server is gone; and which does not end if a child has inherited it.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return above_standard(os.pidfd_open(pid))
    except (ProcessLookupError, PermissionError):  # ended and reaped by the host; a sandbox
        return None
    except OSError as error:
        if error.errno in NO_SUCH_CALL:
            return None
        raise
