"""Runs over things, each of which counts its visits, and processes that work on them and can be killed."""

import multiprocessing
import os
import signal

from django.db import connections
from django.db.models import Sum

from poolsave.ledger import registry
from poolsave.ledger.models import Lease
from poolsave.ledger.work import work
from tests.models import Thing


def things(alias, count, group=0):
    Thing.objects.using(alias).bulk_create(Thing(group=group) for _ in range(count))


def visits(alias, **filters):
    return [thing.visits for thing in Thing.objects.using(alias).filter(**filters)]


def some_are_done(alias):
    return lambda: 0 < (Thing.objects.using(alias).aggregate(total=Sum("visits"))["total"] or 0)


def session_number(alias, name):
    """Twice the number of sessions that have ended."""
    return Lease.objects.using(alias).get(run__name=name).generation


def backfill_of(name, operation, alias, **filters):
    """An operation over the things of a database."""
    operation = operation.using(databases=(alias,))
    return registry.Backfill(name=name, operation=operation, queryset=Thing.objects.using(alias).filter(**filters))


class Worker:
    """A process of its own that works on what is due. It is forked, so that it knows what a test has registered."""

    def __init__(self, alias, **options):
        connections.close_all()
        fork = multiprocessing.get_context("fork")
        self.ended, self._end = fork.Pipe(duplex=False)
        self._options = {"once": True, "executor": "serial", "using": alias, **options}
        self.process = fork.Process(target=self._main)
        self.process.start()
        self._end.close()

    def _main(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.run()

    def run(self):
        work(ended=lambda run: self._end.send(run.name), **self._options)

    def names(self):
        """Wait for its end; gives the runs that it has worked on."""
        found = []
        while True:
            try:
                found.append(self.ended.recv())
            except EOFError:
                self.join()
                return found

    def kill(self, signum):
        os.kill(self.process.pid, signum)
        self.join()

    def join(self):
        self.process.join()
        self.ended.close()
