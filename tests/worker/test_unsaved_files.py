"""A file that is in no storage yet arrives in the worker, or its object fails, and the error says what to do."""

from pathlib import Path

import pytest
from django.core.files.base import ContentFile, File
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile

from poolsave import InvalidOperation, concurrent_saves
from tests.models import Document
from tests.support.operations import pure, saving

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture(autouse=True)
def media(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path / "media"


def new(name, file=None):
    document = Document(name=name, file=file or SimpleUploadedFile(f"{name}.txt", name.encode()))
    document.full_clean()  # reads document.file, from when on pickle alone would leave the content behind
    return document


def stored():
    return {row.name: Path(row.file.path).read_text() for row in Document.objects.all()}


@saving
def saves(documents):
    for document in documents["documents"]:
        document.save()


@pure
def makes(name):
    return {"documents": (new(name),)}


def test_files_in_memory_go_along_with_objects():
    report = saves.using(start_method="fork").map([{"documents": [new("ann")]}, {"documents": (new("bea"), new("cy"))}])
    assert report.ok
    assert stored() == {"ann": "ann", "bea": "bea", "cy": "cy"}


def test_files_in_memory_go_along_with_values():
    assert (makes.using(workers=2) | saves.using(workers=1)).map(["ann", "bea"]).ok
    assert stored() == {"ann": "ann", "bea": "bea"}


@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_a_block_leaves_the_callers_file_saved(executor):
    read, unread = new("ann"), Document(name="bea", file=ContentFile(b"bea", name="bea.txt"))
    with concurrent_saves(workers=2, executor=executor, progress=False) as saves:
        saves.save(read)
        saves.save(unread)
    assert stored() == {"ann": "ann", "bea": "bea"}
    for document in (read, unread):
        document.save()  # would store the file once more if it did not know that it is saved
        assert Path(document.file.path).read_text() == document.name
    assert sorted(row.file.name for row in Document.objects.all()) == ["documents/ann.txt", "documents/bea.txt"]


def test_a_file_that_was_not_saved_or_is_newer_stays_unsaved():
    old = Document.objects.create(name="old", file=ContentFile(b"1", name="1.txt"))
    newer = new("newer")
    old.file = ContentFile(b"2", name="2.txt")
    with concurrent_saves(workers=1, executor="process", progress=False) as saves:
        saves.save(old, update_fields=["name"])
        saves.save(newer)
        newer.file = ContentFile(b"another", name="another.txt")
    assert not old.file._committed
    assert newer.file.read() == b"another"


def test_a_file_on_disk_is_refused_and_named(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    upload = TemporaryUploadedFile("upload.txt", "text/plain", 1, None)
    with (tmp_path / "x.txt").open("rb") as file, upload:
        objects = [new("ann", File(file, "x.txt")), new("bea"), upload]
        report = saves.using(start_method="fork").map([{"documents": [one]} for one in objects[:2]] + objects[2:])
        assert (report.succeeded, report.failed) == (1, 2)
        assert all(isinstance(failure.error, InvalidOperation) for failure in report.failures)
        assert "of tests.Document.file is open on disk" in str(report.failures[0].error)
        with concurrent_saves(executor="thread", progress=False) as block:
            block.save(objects[0])
    assert stored() == {"ann": "x", "bea": "bea"}
