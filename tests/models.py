"""Objects that bulk_create cannot make: receivers, many-to-many rows, parents, set-up code."""

import uuid
from contextvars import ContextVar

from django.db import models
from django.db.models.functions import Now
from django.db.models.signals import post_save
from django.dispatch import receiver

actor = ContextVar("actor")
"""On whose behalf something is saved."""


class Tag(models.Model):
    name = models.CharField(max_length=100, unique=True)


class AuditEntry(models.Model):
    """Written by a receiver, if it is known who acts."""

    actor = models.CharField(max_length=100)
    tag = models.CharField(max_length=100)


class Person(models.Model):
    name = models.CharField(max_length=100, unique=True)
    tags = models.ManyToManyField(Tag)


class Employee(Person):
    salary = models.IntegerField(default=0)


class Badge(models.Model):
    """Written by a receiver, as audit rows are."""

    person = models.ForeignKey(Person, on_delete=models.CASCADE)


class Visit(models.Model):
    """Has a constraint that PostgreSQL checks only at COMMIT."""

    person = models.ForeignKey(Person, on_delete=models.CASCADE)


@receiver(post_save, sender=Person)
@receiver(post_save, sender=Employee)
def write_badge(sender, instance, created, using, raw=False, **kwargs):
    if created:
        Badge.objects.using(using).create(person_id=instance.pk)


class Document(models.Model):
    name = models.CharField(max_length=100)
    file = models.FileField(upload_to="documents")


class Counted(models.Model):
    """Counts how often it was visited."""

    visits = models.IntegerField(default=0)
    group = models.IntegerField(default=0)

    class Meta:
        abstract = True


class Thing(Counted):
    tags = models.ManyToManyField(Tag)
    owner = models.ForeignKey(Person, on_delete=models.CASCADE, null=True)


class ThingOfGroupOne(Thing):
    class Meta:
        proxy = True
        ordering = ["-pk"]


class SpecialThing(Thing):
    extra = models.IntegerField(default=0)


class Remaining(models.Manager):
    def get_queryset(self):
        return super().get_queryset().exclude(group=9)


class SoftThing(Counted):
    """Hides what counts as deleted, also from Django's own look-ups."""

    objects = Remaining()
    everything = models.Manager()

    class Meta:
        base_manager_name = "objects"


class ThingByUuid(Counted):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class ThingByText(Counted):
    code = models.CharField(primary_key=True, max_length=100)


class ThingByPair(Counted):
    pk = models.CompositePrimaryKey("left", "right")
    left = models.IntegerField()
    right = models.CharField(max_length=10)


class Account(models.Model):
    """Has a column of each kind that a dry run compares."""

    name = models.CharField(max_length=100, default="")
    balance = models.IntegerField(default=0)
    data = models.JSONField(default=dict)
    updated = models.DateTimeField(auto_now=True)
    owner = models.ForeignKey(Person, on_delete=models.CASCADE, null=True)
    tags = models.ManyToManyField(Tag)


class SavingsAccount(Account):
    rate = models.IntegerField(default=0)


class Sample(models.Model):
    """Has a column of each kind that is written in a way of its own, and one whose value the database gives."""

    text = models.TextField(default="")
    number = models.IntegerField(null=True)
    share = models.FloatField(null=True)
    price = models.DecimalField(max_digits=10, decimal_places=2, null=True)
    is_new = models.BooleanField(default=True)
    moment = models.DateTimeField(null=True)
    day = models.DateField(null=True)
    clock = models.TimeField(null=True)
    span = models.DurationField(null=True)
    data = models.JSONField(default=dict)
    raw = models.BinaryField(default=b"")
    token = models.UUIDField(null=True)


class Stamped(models.Model):
    name = models.CharField(max_length=100)
    created = models.DateTimeField(db_default=Now())


@receiver(post_save, sender=Tag)
def write_audit_entry(sender, instance, using, raw=False, **kwargs):
    if actor.get(None) is not None:
        AuditEntry.objects.using(using).create(actor=actor.get(), tag=instance.name)
