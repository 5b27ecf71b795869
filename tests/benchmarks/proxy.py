"""A PostgreSQL server that is a network away: a proxy in a process of its own, which holds back each byte for a while.

It delays each direction by the same time and limits nothing else: what comes meanwhile is delayed by as much.
"""

import multiprocessing
import select
import signal
import socket
import time
from collections import deque
from contextlib import closing, contextmanager
from pathlib import Path

SIZE = 1 << 16
"""Bytes per read."""
SOCKET = ".s.PGSQL.5432"
"""The name of the server's socket in its folder, which is what `HOST` gives."""


@contextmanager
def far(server, folder, seconds):
    """While entered, a server (by Django's settings) has a socket in `folder`, too, `seconds` away each way."""
    folder.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / SOCKET))
    listener.listen(100)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(listener, server, seconds), daemon=True)
    process.start()
    listener.close()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        Path(folder, SOCKET).unlink()


def serve(listener, server, seconds):
    partners, held = {}, deque()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which goes to the whole group; the parent ends this process
    with closing(listener):
        while True:
            patience = max(0.0, held[0][0] - time.perf_counter()) if held else None
            # select(), since epoll counts in whole milliseconds
            for ready in select.select([listener, *partners], [], [], patience)[0]:
                if ready is listener:
                    connect(listener, server, partners)
                else:
                    held.append((time.perf_counter() + seconds, ready, receive(ready)))
            while held and held[0][0] <= time.perf_counter():
                _due, source, data = held.popleft()
                pass_on(source, data, partners)


def connect(listener, server, partners):
    client, host = listener.accept()[0], server["HOST"]
    if host.startswith("/"):
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(str(Path(host, SOCKET)))
    else:
        upstream = socket.create_connection((host, int(server["PORT"] or 5432)))
    partners |= {client: upstream, upstream: client}


def receive(source):
    try:
        return source.recv(SIZE)
    except OSError:
        return b""


def pass_on(source, data, partners):
    """An end, too, arrives late."""
    target = partners.get(source)
    if target is None:
        return
    try:
        target.sendall(data)
    except OSError:
        data = b""
    if not data:
        for end in (source, target):
            partners.pop(end, None)
            end.close()
