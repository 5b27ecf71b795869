"""Tags of django-taggit, audit rows of django-auditlog, and versions of django-reversion."""

import json

import reversion
from auditlog.context import set_actor
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, User
from reversion.models import Revision, Version
from taggit.models import Tag, TaggedItem

from poolsave import pooled_operation
from tests.third_party_project.models import Customer, Invoice, Line, Recipe
from tests.third_party_project.work import Work, fail_some, people


@pooled_operation(progress=False)
def tag(number):
    """Use tags that others make at the same time."""
    recipe = Recipe.objects.create(name=f"recipe {number}")
    recipe.tags.add("Vegan", f"week {number // 5}")
    if number % 3 == 0:
        recipe.tags.set(["Vegan", "quick"])
    if number % 4 == 0:
        recipe.tags.remove("Vegan")
    fail_some(number)
    return sorted(recipe.tags.names())


def tagged():
    names = dict(Recipe.objects.values_list("pk", "name"))
    items = TaggedItem.objects.values_list("object_id", "tag__slug", "content_type__model")
    return {
        "recipes": sorted(names.values()),
        "tags": sorted(Tag.objects.values_list("name", "slug")),
        "items": sorted((names.get(key, "gone"), *rest) for key, *rest in items),
    }


@pooled_operation(progress=False)
def register(number, *, actor):
    """Create, change and delete a customer, in the name of an actor."""
    with set_actor(User.objects.get(username=actor)):
        customer = Customer.objects.create(name=f"customer {number}", email="new@example.org")
        customer.email = f"{number}@example.org"
        customer.save()
        customer.groups.add(Group.objects.get(name="customers"))
        if number % 4 == 0:
            customer.groups.clear()
            customer.delete()
        fail_some(number)
    return LogEntry.objects.filter(object_repr=f"customer {number}").count()


def audited():
    names = {str(key): name for key, name in Customer.objects.values_list("pk", "name")}
    entries = LogEntry.objects.order_by("object_repr", "pk")
    return {
        "customers": sorted(Customer.objects.values_list("name", "email", "groups__name")),
        "entries": [entry_of(entry, names) for entry in entries],
    }


def entry_of(entry, names):
    """Give everything of it but keys and times."""
    key = entry.object_pk
    name = names.get(key, "gone") if str(entry.object_id) == key else "another"
    text = json.dumps([entry.changes, entry.serialized_data and [str(entry.serialized_data["pk"])]])
    told = text.replace(f'"{key}"', '"its key"'), entry.serialized_data and entry.serialized_data["fields"]
    actor = entry.actor and entry.actor.username, entry.actor_email
    return entry.object_repr, name, entry.content_type.model, entry.action, *told, *actor, entry.additional_data


@pooled_operation(progress=False)
def bill(number, *, actor):
    """Write an invoice in one revision, change it in a second, and go back to the first."""
    with reversion.create_revision():
        invoice = Invoice.objects.create(name=f"invoice {number}")
        for position in range(number % 3 + 1):
            Line.objects.create(invoice=invoice, name=f"line {number}.{position}")
        reversion.set_user(User.objects.get(username=actor))
        reversion.set_comment("written")
    with reversion.create_revision():
        invoice.state = "paid"
        invoice.save()
        reversion.set_comment("paid")
        fail_some(number)
    if number % 4 == 0:
        Version.objects.get_for_object(invoice).last().revision.revert()
    return Version.objects.get_for_object(invoice).count()


def versions():
    names = {
        "invoice": dict(Invoice.objects.values_list("pk", "name")),
        "line": dict(Line.objects.values_list("pk", "name")),
    }
    saved = Version.objects.select_related("revision__user", "content_type").order_by("object_repr", "pk")
    return {
        "lines of invoices": sorted(Invoice.objects.values_list("name", "state", "lines__name")),
        "revisions": sorted(Revision.objects.values_list("comment", "user__username"), key=repr),
        "versions": [version_of(version, names) for version in saved],
    }


def version_of(version, names):
    (data,) = json.loads(version.serialized_data)
    named = names[version.content_type.model]
    data["pk"] = named.get(data["pk"], "gone")
    if "invoice" in data["fields"]:
        data["fields"]["invoice"] = names["invoice"].get(data["fields"]["invoice"], "gone")
    by = version.revision.user and version.revision.user.username
    return (
        version.object_repr,
        named.get(int(version.object_id), "gone"),
        data,
        version.revision.comment,
        by,
        version.db,
    )


# Ten objects succeed, of which three can be divided by 4.
WORKS = {
    "django-taggit": Work(tag, tagged, {"recipes": 10, "tags": 5, "items": 2 * 10 - 3}),
    "django-auditlog": Work(
        register.bind(actor="clerk"), audited, {"customers": 10 - 3, "entries": 3 * 10 + 2 * 3}, people
    ),
    "django-reversion": Work(
        bill.bind(actor="clerk"),
        versions,
        {"lines of invoices": 20, "revisions": 2 * 10, "versions": 2 * (10 + 20)},
        people,
    ),
}
