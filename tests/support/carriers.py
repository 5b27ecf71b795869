"""Context that workers must have, and operations that tell what they find."""

import contextlib
import threading
from contextvars import ContextVar

from django.db import connections, transaction

from tests.models import Person, Tag, actor
from tests.support.operations import pure, saving

colour = ContextVar("colour")


class Depth:
    """Context in a thread-local, restored by a context manager."""

    def __init__(self):
        self._here = threading.local()

    def __reduce__(self):
        return "depth"

    @property
    def value(self):
        return getattr(self._here, "value", None)

    @value.setter
    def value(self, value):
        self._here.value = value

    def capture(self):
        return self.value

    @contextlib.contextmanager
    def restore(self, state):
        before, self.value = self.value, state
        try:
            yield
        finally:
            self.value = before


depth = Depth()


class Tenant:
    """A schema on PostgreSQL: chosen in the caller, and in the worker in force until the transaction ends."""

    chosen = None

    def capture(self):
        return Tenant.chosen

    def restore(self, schema):
        if schema is not None:
            with connections["postgres"].cursor() as cursor:
                cursor.execute("SELECT set_config('search_path', %s, true)", [schema])


class RefusesBad:
    """Fails to restore a colour that is "bad"."""

    def capture(self):
        return colour.get()

    def restore(self, state):
        if state == "bad":
            raise LookupError(state)


class Suppresses:
    """A context manager that swallows what goes wrong inside it."""

    def capture(self):
        return None

    def restore(self, _state):
        return contextlib.suppress(ValueError)


class Generates:
    """Forgets @contextmanager."""

    def capture(self):
        return None

    def restore(self, _state):
        yield


class CapturesALock:
    def capture(self):
        return threading.Lock()

    def restore(self, state):
        pass


@pure
def tells_colour(_item):
    return colour.get(None)


@pure
def tells_depth(_item):
    return depth.value


@pure
def tells_and_sets_colour(item):
    found = colour.get(None)
    colour.set(item)
    return found


@pure
def gives_late(_item):
    """Its value is pickled after it has returned, where it finds the colour or does not."""
    return Late()


class Late:
    def __reduce__(self):
        return str, (colour.get("no colour"),)


@saving
def save_tag(name):
    Tag(name=name).save(using="postgres")
    if name.startswith("fails"):
        raise ValueError(name)


@saving
def tells_name(tag):
    return tag.name


@saving
def tells_search_path(_item):
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SHOW search_path")
        return cursor.fetchone()[0]


@saving
def save_audited(name, *, alias="default"):
    Tag(name=name).save(using=alias)
    if name == "bad":
        raise ValueError(name)


@saving
def calls_back_with_actor(name, *, alias="default"):
    Person(name=name).save(using=alias)
    transaction.on_commit(lambda: Tag(name=f"{name} called").save(using=alias), using=alias)


@saving
def tells_actor_after_retries(name):
    tries[name] = tries.get(name, 2) - 1
    if tries[name] >= 0:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'victim' USING ERRCODE = '40P01'; END $$")
    return actor.get()


tries = {}
