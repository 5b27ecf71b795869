"""With `batch_writes`, threads of one function may share its connection: each row is kept, and each statement finds
what was saved before it."""

import threading

import pytest
from django.db import connections

from tests.models import Tag
from tests.support.comparing import ALIAS, execute, run, run_both

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def in_a_thread(call, *args, seconds=30):
    """Call it in another thread, which gets this thread's connection of Django's; gives the thread."""
    wrapper = connections[ALIAS]

    def share():
        connections[ALIAS] = wrapper
        call(*args)

    wrapper.inc_thread_sharing()
    thread = threading.Thread(target=share)
    thread.start()
    thread.join(seconds)
    return thread


def save(name):
    Tag(name=name).save(using=ALIAS)


def test_row_saved_while_others_are_sent_is_kept():
    saved = []

    def saves_beside(name):
        threads = []

        def while_sending(send, sql, *args):
            if "INSERT" in sql and not threads:
                # It is let in after these rows at the latest, which the server does not have yet.
                threads.append(in_a_thread(save, f"{name} beside", seconds=0.2))
            return send(sql, *args)

        save(name)
        with connections[ALIAS].execute_wrapper(while_sending):
            execute("SELECT count(*) FROM tests_tag")
        for thread in threads:
            thread.join(30)
            connections[ALIAS].dec_thread_sharing()
            saved.append(f"{name} beside")

    names = [f"name {number}" for number in range(10)]
    ran = run(saves_beside, names, batch_writes=True)
    assert len(saved) > 5
    assert ran.tables["tags"] == sorted(repr((name,)) for name in names + saved)
    assert (ran.batching.batched, ran.batching.undone) == (1, 0)


def test_statement_of_another_thread_finds_what_was_saved():
    """By the driver's connection, of which the driver lets any thread make use."""

    def counts_beside(name):
        raw, counted = connections[ALIAS].connection, []

        def count():
            cursor = raw.cursor()
            cursor.execute("SELECT count(*) FROM tests_tag")
            counted.append(cursor.fetchone()[0])

        save(name)
        thread = threading.Thread(target=count)
        thread.start()
        thread.join(30)
        save(f"{name} later")
        return counted

    batching = run_both(counts_beside, "abc")
    assert (batching.batched, batching.undone) == (1, 0)
