"""Events that triggers of django-pghistory write, and a trigger of django-pgtrigger that refuses a statement."""

import pghistory
import pgtrigger
from django.apps import apps
from pghistory.models import Context

from poolsave import pooled_operation
from tests.third_party_project.models import Account, Note
from tests.third_party_project.work import FAILING, Work

AccountEvent = apps.get_model("third_party_project", "AccountEvent")
NoteEvent = apps.get_model("third_party_project", "NoteEvent")


@pooled_operation(progress=False)
def open_account(number, *, actor):
    """Write an account and a note with their events, and delete some."""
    with pghistory.context(actor=actor, number=number):
        write_account(number)
    return AccountEvent.objects.filter(name=f"account {number}").count()


@pooled_operation(progress=False)
def open_without_a_context(number):
    write_account(number)


def write_account(number):
    account = Account.objects.create(name=f"account {number}")
    account.balance = number
    account.save()
    note = Note.objects.create(account=account, name=f"note {number}")
    pghistory.create_event(note, label="note.read")
    if number in FAILING:
        account.delete()  # the trigger refuses it
    if number % 4 == 0:
        note.delete()
        with pgtrigger.ignore("third_party_project.Account:protect_deletes"):
            account.delete()


def events():
    accounts = dict(Account.objects.values_list("pk", "name"))
    notes = dict(Note.objects.values_list("pk", "name"))
    of_accounts = AccountEvent.objects.select_related("pgh_context").order_by("name", "pgh_id")
    of_notes = NoteEvent.objects.select_related("pgh_context").order_by("name", "pgh_id")
    return {
        "accounts": sorted(Account.objects.values_list("name", "balance")),
        "notes": sorted(Note.objects.values_list("name", "account__name")),
        "events": [(*event_of(event, accounts), event.balance) for event in of_accounts],
        "events of notes": [(*event_of(event, notes), accounts.get(event.account_id, "gone")) for event in of_notes],
        "contexts": sorted(map(repr, Context.objects.values_list("metadata", flat=True))),
    }


def event_of(event, names):
    context = event.pgh_context and event.pgh_context.metadata
    return event.pgh_label, event.name, names.get(event.pgh_obj_id, "gone"), event.id == event.pgh_obj_id, context


# Account 0 is not changed by its second save.
ROWS = {"accounts": 10 - 3, "notes": 10 - 3, "events": 2 * 10 - 1, "events of notes": 10}
WORKS = {
    "django-pghistory": Work(open_account.bind(actor="clerk"), events, {**ROWS, "contexts": 10}),
    "django-pghistory without a context": Work(open_without_a_context, events, {**ROWS, "contexts": 0}),
}
