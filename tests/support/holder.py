"""A process that says who it is, as one that works on a durable run does, and waits for its end."""

import subprocess
import sys
import time
from contextlib import contextmanager

from poolsave.ledger.holders import holder_here


@contextmanager
def working_process():
    """Give the process, which a test may kill, and what stands in `Run.holder` of a run that it works on."""
    process = subprocess.Popen([sys.executable, "-m", "tests.support.holder"], stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    print(holder_here(1), flush=True)
    time.sleep(60)
