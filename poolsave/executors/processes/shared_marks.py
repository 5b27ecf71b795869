"""A small block of memory that a worker shares with its parent, where the worker's death cannot take it.

It holds the number of the task that the worker has begun, when it began its present object, a number that the worker
noted, and for each object of that task one byte, or where objects are brisk the time at which it ended. Only the
worker writes these; only the parent writes the byte that says that no further object is to be begun.
"""

from __future__ import annotations

import mmap
import os
import struct

from .descriptors import reserved_file

TASK = struct.Struct("@Q")
CLOCK = struct.Struct("@d")
CLOCK_AT, HALTED, STAMPED, NOTE_AT, MARKS = 8, 16, 17, 24, 64
NOTE_SIZE = 32


class SharedMarks:
    """The block, in the parent by `create` and in the worker by `attach`; both write and read it in place."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._stamps_at = MARKS + (len(memory) - MARKS) // 9 // 8 * 8
        self._stamps: memoryview[float] | None = None

    @classmethod
    def create(cls, longest: int) -> tuple[SharedMarks, int]:
        """Make a block for tasks of up to `longest` objects, and give the descriptor by which a worker finds it."""
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
        # Clear first: if the worker dies between the two lines, the parent still sees the task before, which it
        # knows to be answered, and so it does not take old marks for those of the new task.
        self._memory[STAMPED : STAMPED + 2] = bytes(2)
        self._memory[MARKS : MARKS + size] = bytes(size)
        self.note(0)
        TASK.pack_into(self._memory, 0, task)

    def put(self, offset: int, mark: int) -> None:
        """Note the state of an object."""
        self._memory[MARKS + offset] = mark

    def stamps(self, size: int, *, begun: int, ended: int) -> memoryview[float]:
        """Give room for the times at which the objects of this task end, which stand for their marks."""
        if self._stamps is None:
            self._stamps = memoryview(self._memory)[self._stamps_at :].cast("d")
        self._memory[self._stamps_at : self._stamps_at + 8 * size] = bytes(8 * size)
        self._memory[STAMPED : STAMPED + 2] = bytes((begun, ended))
        return self._stamps

    def note(self, number: int) -> None:
        """Keep a number of up to 256 bits that the parent will want if the worker dies."""
        self._memory[NOTE_AT : NOTE_AT + NOTE_SIZE] = number.to_bytes(NOTE_SIZE, "little")

    @property
    def noted(self) -> int:
        """The number that was noted last in this task, or 0."""
        return int.from_bytes(self._memory[NOTE_AT : NOTE_AT + NOTE_SIZE], "little")

    def clock(self, began: float) -> None:
        """Note when the present object began, by `time.monotonic()`, which all processes share; 0: it has ended."""
        CLOCK.pack_into(self._memory, CLOCK_AT, began)

    @property
    def began(self) -> float:
        """When the present object began, or 0."""
        found: float = CLOCK.unpack_from(self._memory, CLOCK_AT)[0]
        return found

    @property
    def task(self) -> int:
        """The task that was begun last, or 0."""
        found: int = TASK.unpack_from(self._memory, 0)[0]
        return found

    def marks(self, size: int) -> bytes:
        """The marks of the first `size` objects of that task."""
        begun, ended = self._memory[STAMPED : STAMPED + 2]
        if not ended:
            return self._memory[MARKS : MARKS + size]
        times = memoryview(self._memory[self._stamps_at : self._stamps_at + 8 * size]).cast("d").tolist()
        done = (*times, 0.0).index(0.0)
        return (bytes([ended]) * done + bytes([begun]) + bytes(size))[:size]

    @property
    def halted(self) -> bool:
        """Whether no further object is to be begun."""
        return self._memory[HALTED] != 0

    def halt(self) -> None:
        """Tell the worker to begin no further object."""
        self._memory[HALTED] = 1

    def close(self) -> None:
        """Give the memory back, in the parent."""
        self._memory.close()
