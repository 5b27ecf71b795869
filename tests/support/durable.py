"""Functions of durable runs, none of which may run twice, and what is left in the tables afterwards."""

import os
import signal

from django.db.models import F
from django.db.models.signals import post_save
from django.dispatch import receiver

import poolsave
from poolsave import pooled_operation
from poolsave.ledger.models import Chunk, Failure, Run
from tests.models import AuditEntry, Thing


@receiver(post_save, sender=Thing)
def write_entry(sender, instance, using, **kwargs):
    """Writes a row each time."""
    if getattr(instance, "leaves_entry", False):
        AuditEntry.objects.using(using).create(actor="durable", tag=str(instance.pk))


@pooled_operation(progress=False, workers=2, start_method="fork")
def counts(row, bad=(), kills=()):
    """Adds 1 to the row's counter, and has a receiver write a row."""
    if row.pk in kills:
        os.kill(os.getpid(), signal.SIGKILL)
    row.visits = F("visits") + 1
    row.leaves_entry = True
    row.save(update_fields=["visits"])
    if row.pk in bad or row.group == 5:
        raise ValueError(f"not {row.pk}")
    return row.pk


@pooled_operation(progress=False, workers=2, start_method="fork")
def counts_input(item, alias="default"):
    """The same for an input that is not a queryset."""
    Thing.objects.using(alias).filter(pk=item["pk"]).update(visits=F("visits") + 1)
    AuditEntry.objects.using(alias).create(actor=poolsave.current().key, tag=str(item["pk"]))
    if Thing.objects.using(alias).filter(pk=item["pk"], group=5).exists():
        raise ValueError("not this one")


def make_things(alias, number):
    Thing.objects.using(alias).bulk_create(Thing(pk=pk) for pk in range(1, number + 1))
    return Thing.objects.using(alias).all()


def visited(alias):
    """How often each row was counted, by its key."""
    return dict(Thing.objects.using(alias).order_by("pk").values_list("pk", "visits"))


def entries(alias):
    """The keys of the rows that the receiver has written, in order."""
    return sorted(int(tag) for tag in AuditEntry.objects.using(alias).values_list("tag", flat=True))


def ledger(alias, name):
    """What the ledger says: the run's row, its ranges in order, and its failures."""
    run = Run.objects.using(alias).get(name=name)
    ranges = Chunk.objects.using(alias).filter(run_id=run.pk).order_by("sequence")
    columns = ranges.values_list("low", "high", "done", "failed", "skipped")
    return run, [*columns], [*Failure.objects.using(alias).filter(run_id=run.pk).order_by("pk")]


@pooled_operation(progress=False)
def counts_unless_killed(row, folder, deadly=()):
    """As `counts`; for each of these rows the first worker that comes to it is killed, after its work."""
    counts.func(row)
    if row.pk in deadly and not os.path.exists(f"{folder}/{row.pk}"):
        open(f"{folder}/{row.pk}", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
