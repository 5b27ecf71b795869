"""What the app of the tests registers."""

import time

from django import forms
from django.db.models import F

import poolsave
from tests.models import Tag, Thing


def pause():
    """Do nothing, unless a test has it take its time."""


class GroupForm(forms.Form):
    group = forms.IntegerField(min_value=0)
    by = forms.IntegerField(required=False, initial=1)
    names = forms.MultipleChoiceField(choices=[("a", "a"), ("b", "b")], required=False)
    since = forms.SplitDateTimeField(required=False)


@poolsave.backfill("count-visits", queryset=Thing.objects.all())
@poolsave.pooled_operation(workers=2, transaction="chunk", progress=False)
def count_visit(thing):
    thing.visits = F("visits") + 1
    thing.save()


@poolsave.backfill("count-group", queryset=lambda cleaned: Thing.objects.filter(group=cleaned["group"]), form=GroupForm)
@poolsave.pooled_operation(workers=2, progress=False)
def count_by(thing, by=None):
    thing.visits = F("visits") + (by or 1)
    thing.save()


@poolsave.pooled_operation(workers=2, transaction="chunk", chunksize=5, progress=False)
def count_slowly(thing):
    time.sleep(0.01)
    count_visit(thing)


@poolsave.backfill("fail-in-three-ways", queryset=Thing.objects)
@poolsave.pooled_operation(workers=2, transaction="chunk", progress=False)
def fail_in_three_ways(thing):
    """Fail with a value of its own, until there is a tag called "mended"."""
    pause()
    tags = Tag.objects.using(thing._state.db)
    mended = tags.filter(name="mended").exists()
    if not mended and thing.group == 1:
        raise ValueError(f"thing {thing.pk} is bad")
    if not mended and thing.group == 2:
        tags.create(name="taken")
    if not mended and thing.group == 3:
        {}[f"thing {thing.pk}"]
    thing.visits = F("visits") + 1
    thing.save()
