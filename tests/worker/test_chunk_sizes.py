"""The one COMMIT of a chunk does not count for the size of the next one; the COMMITs of its objects do."""

import pytest

from poolsave import pooled_operation
from poolsave._engine.chunking import FlowControl
from tests.models import Person

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "postgres"])


@pooled_operation(workers=1, executor="thread", chunksize=5, databases=("postgres",), progress=False)
def saves(number):
    Person(name=f"{number}").save(using="postgres")


@pytest.mark.parametrize("mode", ["object", "chunk"])
def test_the_commit_of_a_chunk_is_told_apart(mode, monkeypatch):
    told, learn = [], FlowControl.learn

    def noting(flow, count, seconds, **more):
        told.append((seconds, more["committing"]))
        learn(flow, count, seconds, **more)

    monkeypatch.setattr(FlowControl, "learn", noting)
    saves.using(transaction=mode).map(range(40)).raise_if_failed()
    assert told
    if mode == "chunk":
        assert all(0 < committing < seconds for seconds, committing in told)
    else:
        assert all(committing == 0 for _seconds, committing in told)
