"""An error mail to ADMINS shows no password of the settings that poolsave sends to workers."""

import multiprocessing.process
from multiprocessing import forkserver

import pytest
from django.db import connections
from django.test import override_settings
from django.views.debug import ExceptionReporter

from poolsave import pooled_operation
from poolsave.executors.processes import start_methods
from tests.models import Person
from tests.support import operations

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])
PASSWORD = "hunter2"


@pytest.fixture
def secrets(monkeypatch):
    """A password in each place that poolsave sends settings from."""
    monkeypatch.setitem(connections["default"].settings_dict, "PASSWORD", PASSWORD)
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "sslpassword", PASSWORD)
    with override_settings(SECRET_KEY=PASSWORD):
        yield
        del connections["default"].settings_dict["OPTIONS"]["sslpassword"]  # sqlite3 would refuse it
        monkeypatch.undo()


def local_variables(error):
    """As they stand in the error mail, by frame."""
    reporter = ExceptionReporter(None, type(error), error, error.__traceback__, is_email=True)
    return {
        f"{frame['function']} {name}": repr(value)
        for frame in reporter.get_traceback_frames()
        if frame["function"] not in ("secrets", "run")
        for name, value in frame["vars"]
    }


def refused(_self, *_arguments):
    raise OSError("no more processes")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_locals_of_a_start_that_fails_hide_settings(secrets, monkeypatch, method):
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refused)
    with pytest.raises(OSError, match="no more processes") as caught:
        operations.save_person.using(start_method=method).map(["a"])
    shown = local_variables(caught.value)
    assert any(name.endswith(" job") for name in shown)
    assert [name for name, value in shown.items() if PASSWORD in value] == []


def test_locals_of_a_fork_server_that_fails_hide_settings(secrets, monkeypatch):
    monkeypatch.setattr(forkserver, "ensure_running", lambda: refused(None))
    monkeypatch.setattr(start_methods, "_specs_at_start", {})  # or it is passed by where a test has reloaded a module
    with pytest.raises(OSError, match="no more processes") as caught:
        operations.save_person.using(start_method="forkserver").map(["a"])
    shown = local_variables(caught.value)
    assert "ensure_forkserver preload" in shown
    assert [name for name, value in shown.items() if PASSWORD in value] == []


def test_locals_of_a_function_that_cannot_be_sent_hide_settings(secrets):
    operation = pooled_operation(lambda name: Person(name=name).save(), start_method="spawn", progress=False)
    with pytest.raises(Exception, match="cannot be pickled") as caught:
        operation.map(["a"])
    assert [name for name, value in local_variables(caught.value).items() if PASSWORD in value] == []
