"""A PgBouncer in front of the tests' PostgreSQL, if it is installed."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
server_reset_query_always = 0
"""


def missing() -> str | None:
    """Why there can be none."""
    return None if shutil.which("pgbouncer", path=PATH) else "not installed: pgbouncer"


@contextmanager
def pooler(settings, *, size, mode="transaction"):
    """Start one with so many connections to the server of these settings; gives the settings that lead to it."""
    with TemporaryDirectory(prefix="poolsave-") as folder, _running(Path(folder), settings, size, mode) as port:
        yield {"HOST": "127.0.0.1", "PORT": str(port)}


@contextmanager
def _running(folder, settings, size, mode):
    port = _free_port()
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    server = {name: settings[key] for name, key in names.items()}
    server["port"] = server["port"] or "5432"
    file = folder / "pgbouncer.ini"
    file.write_text(CONFIGURATION.format(**server, listen=port, size=size, mode=mode).replace("password=\n", "\n"))
    folder.chmod(0o755)
    command = [shutil.which("pgbouncer", path=PATH), "-q", str(file)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, user=_user(settings["HOST"]), **silent) as process:
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.kill()


def _user(host):
    """Who may run it: not root, and as root's private server, whose folder only its owner may enter."""
    if os.geteuid() != 0:
        return None
    return os.stat(host).st_uid if host.startswith("/") else "nobody"


def _free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_for(port, process):
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"pgbouncer ended with {process.returncode}")
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("pgbouncer does not listen")
