"""A block of memory that a worker shares with its parent and that outlives the worker.

It holds the id of the current task, the start time of the current object, a number that the worker has noted, and one
mark per object of the task. Where objects are short, their end times take the place of the marks. Only the worker
writes these. Only the parent writes the byte HALTED: no further object may start.

    0        8          16       17         24     56      64
    | task   | started  | HALTED | STAMPED  | note |       | marks, a byte each | end times, 8 bytes each |
"""

from __future__ import annotations

import mmap
import os
import struct

from .pipes import nameless_file

TASK = struct.Struct("@Q")
CLOCK = struct.Struct("@d")
CLOCK_AT, HALTED, STAMPED, NOTE_AT, MARKS = 8, 16, 17, 24, 64
"""Offsets in bytes. STAMPED has two: the marks for the first object without an end time, and for those with one."""
NOTE_SIZE = 32
"""Bytes."""


class SharedMarks:
    """The block. The parent makes it by `create`, the worker opens it by `attach`; both use it in place."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._stamps_at = MARKS + (len(memory) - MARKS) // 9 // 8 * 8
        self._stamps: memoryview[float] | None = None

    @classmethod
    def create(cls, longest: int) -> tuple[SharedMarks, int]:
        """Make a block for tasks of up to `longest` objects. Also returns the descriptor for `attach`."""
        # A byte and a time per object, in whole words.
        size = MARKS + 9 * 8 * -(-longest // 8)
        fd = reserved_file(size)
        try:
            return cls(mmap.mmap(fd, size)), fd
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> SharedMarks:
        """Open the block in a worker, and close the descriptor."""
        try:
            return cls(mmap.mmap(fd, 0))
        finally:
            os.close(fd)

    def begin(self, task: int, size: int) -> None:
        """Note in the worker that a task has begun; tasks are numbered from 1."""
        # Clear first: if the worker dies before the last line, the parent still sees the previous task, knows it to be
        # answered, and does not take its marks for those of the new task.
        self._memory[STAMPED : STAMPED + 2] = bytes(2)
        self._memory[MARKS : MARKS + size] = bytes(size)
        self.note(0)
        TASK.pack_into(self._memory, 0, task)

    def put(self, offset: int, mark: int) -> None:
        """Note the mark of an object."""
        self._memory[MARKS + offset] = mark

    def stamps(self, size: int, *, begun: int, ended: int) -> memoryview[float]:
        """Return a zeroed array for the end times of this task's objects, which take the place of their marks."""
        if self._stamps is None:
            self._stamps = memoryview(self._memory)[self._stamps_at :].cast("d")
        self._memory[self._stamps_at : self._stamps_at + 8 * size] = bytes(8 * size)
        # Last: from here on each time that is not zero says that its object has ended.
        self._memory[STAMPED : STAMPED + 2] = bytes((begun, ended))
        return self._stamps

    def note(self, number: int) -> None:
        """Keep a number of up to 256 bits that the parent needs if the worker dies."""
        self._memory[NOTE_AT : NOTE_AT + NOTE_SIZE] = number.to_bytes(NOTE_SIZE, "little")

    @property
    def last_note(self) -> int:
        """The last number that the worker noted in this task, or 0."""
        return int.from_bytes(self._memory[NOTE_AT : NOTE_AT + NOTE_SIZE], "little")

    def clock(self, began: float) -> None:
        """Note when the current object started, by `time.monotonic()`, which all processes share; 0: it has ended."""
        CLOCK.pack_into(self._memory, CLOCK_AT, began)

    @property
    def object_started(self) -> float:
        """When the current object started, or 0."""
        started: float = CLOCK.unpack_from(self._memory, CLOCK_AT)[0]
        return started

    @property
    def task(self) -> int:
        """The id of the current task, or 0."""
        task: int = TASK.unpack_from(self._memory, 0)[0]
        return task

    def of_task(self, size: int) -> bytes:
        """The marks of the first `size` objects of the current task."""
        begun, ended = self._memory[STAMPED : STAMPED + 2]
        if not ended:
            return self._memory[MARKS : MARKS + size]
        times = memoryview(self._memory[self._stamps_at : self._stamps_at + 8 * size]).cast("d").tolist()
        done = (*times, 0.0).index(0.0)
        return (bytes([ended]) * done + bytes([begun]) + bytes(size))[:size]

    @property
    def halted(self) -> bool:
        """Whether no further object may start."""
        return self._memory[HALTED] != 0

    def halt(self) -> None:
        """Let the worker start no further object."""
        self._memory[HALTED] = 1

    def close(self) -> None:
        """Release the memory, in the parent."""
        self._memory.close()


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
