"""Small models as these apps make them."""

import reversion
from auditlog.registry import auditlog
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db import models
from mptt.models import MPTTModel, TreeForeignKey
from taggit.managers import TaggableManager
from treebeard.mp_tree import MP_Node
from treebeard.ns_tree import NS_Node


class Category(MPTTModel):
    name = models.CharField(max_length=50, unique=True)
    parent = TreeForeignKey("self", models.CASCADE, null=True, related_name="children")

    class MPTTMeta:
        order_insertion_by = ["name"]


class Page(MP_Node):
    name = models.CharField(max_length=50, unique=True)
    node_order_by = ["name"]


class Section(NS_Node):
    name = models.CharField(max_length=50, unique=True)
    node_order_by = ["name"]


class Recipe(models.Model):
    name = models.CharField(max_length=50, unique=True)
    tags = TaggableManager()


class Customer(models.Model):
    name = models.CharField(max_length=50, unique=True)
    email = models.EmailField()
    groups = models.ManyToManyField(Group)

    def __str__(self):
        return self.name


@reversion.register(follow=["lines"])
class Invoice(models.Model):
    name = models.CharField(max_length=50, unique=True)
    state = models.CharField(max_length=50, default="open")

    def __str__(self):
        return self.name


@reversion.register
class Line(models.Model):
    invoice = models.ForeignKey(Invoice, models.CASCADE, related_name="lines")
    name = models.CharField(max_length=50, unique=True)

    def __str__(self):
        return self.name


reversion.register(User)
auditlog.register(Customer, m2m_fields={"groups"}, serialize_data=True)

if settings.ON_POSTGRES:
    import pghistory
    import pgtrigger

    @pghistory.track()
    @pgtrigger.register(pgtrigger.Protect(name="protect_deletes", operation=pgtrigger.Delete))
    class Account(models.Model):
        """Triggers write a row of history for each of its rows, and refuse to delete one."""

        name = models.CharField(max_length=50, unique=True)
        balance = models.IntegerField(default=0)

    @pghistory.track(pghistory.ManualEvent("note.read"))
    class Note(models.Model):
        """Its history is written by the function, so that its table has no triggers."""

        account = models.ForeignKey(Account, models.CASCADE)
        name = models.CharField(max_length=50, unique=True)
