"""Hooks around the start of workers, that tell by a file in the folder of the run that they were called."""

import os
import threading
from pathlib import Path

from django.db import connections

from tests.models import Person
from tests.support.operations import doubles, pure, saving

FOLDER = Path(os.environ["POOLSAVE_TEST_FOLDER"])


def note(name, text=""):
    with open(FOLDER / name, "a") as file:
        file.write(f"{os.getpid()} {text}\n")


def take(name):
    """What was noted, as pairs of process id and text, and forget it."""
    path = FOLDER / name
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [(int(pid), text) for pid, _space, text in (line.partition(" ") for line in lines)]


def notes_before():
    note("before")


def notes_after():
    with connections["default"].cursor() as cursor:  # Django is up, and the connection is the worker's own
        cursor.execute("SELECT 1")
    note("after", str(connections["default"].settings_dict["NAME"]))


def fails():
    raise ConnectionRefusedError("no broker")


class FailsLater:
    """A hook before workers that fails from the second time on."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls > 1:
            raise ConnectionRefusedError("no broker")


class Metrics:
    """A thread of the caller's, that must end before a fork."""

    def __init__(self):
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.over.wait)
        self.thread.start()

    def stop(self):
        self.over.set()
        self.thread.join()


@pure
def dies_when_told(item):
    if item == "die":
        os._exit(3)
    return os.getpid()


@saving
def saves_after_hook(name):
    assert (FOLDER / "after").read_text().startswith(str(os.getpid()))
    Person(name=name).save()


@pure
def checks_a_pool_in_a_worker(_item):
    return [message.id for message in doubles.check()]
