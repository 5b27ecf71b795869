"""A process that says who it is, as one that works on a durable run does, and waits for its end."""

import time

from poolsave.ledger.holders import holder_here


def told():
    print(holder_here(1), flush=True)
    time.sleep(60)
