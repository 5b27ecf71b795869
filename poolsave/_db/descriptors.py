"""Open files and sockets of this process, as the kernel knows them, whatever driver they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

FOLDER = "/proc/self/fd"


def open_descriptors() -> Iterator[tuple[int, str]]:
    """Each descriptor and what it leads to; nothing where there is no /proc."""
    if not os.path.isdir(FOLDER):
        return
    for name in os.listdir(FOLDER):
        with suppress(FileNotFoundError):  # that of the listing itself
            yield int(name), os.readlink(f"{FOLDER}/{name}")


def open_sockets() -> frozenset[str]:
    """The sockets that are open, by name."""
    return frozenset(target for _number, target in open_descriptors() if target.startswith("socket:"))
